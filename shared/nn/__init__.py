"""Networks and network state: backbones, heads, momentum encoder, feature queue."""
