"""MoCo, PCL's first half, beside PyPI `lightly`'s, put together as in its examples."""

from benchmarks.speed.peer_environment import PeerPackage
from benchmarks.speed.protocol import Comparison

PEER = PeerPackage(
    requirement="lightly==1.6.0",
    dependencies=("hydra-core", "numpy", "pytorch_lightning", "tqdm"),
)
OURS_MODULE = "benchmarks.speed.pcl_ours"
PEER_MODULE = "benchmarks.speed.pcl_peer"

SETTINGS = {
    "batch_size": 64,
    "queue_size": 4096,
    "dim": 128,
    "temperature": 0.2,
    "key_momentum": 0.999,
    "lr": 0.03,
    "seed": 0,
}
WARM_UP_STEPS = 2

HEADER = """\
MoCo training step, ResNet-18 for 32 px (3x3 stem, no max-pool), head 512-512-128, B 64, queue 4,096
peer: lightly 1.6.0, its ResNet, MoCoProjectionHead, NTXentLoss with memory bank, update_momentum
the views are given: 64 query and 64 key images
what differs:
- ours: channels-last layout, freed memory kept, on huge pages; peer: as it is
- the moving average of the weights: one fused operation here, one for each tensor there
- ours shuffles the key batch and looks whether the loss is finite; the peer does neither
- activations are computed in place here, into new memory there"""

STEP = (
    Comparison("float32", "float32", "float32"),
    Comparison("bf16 autocast, peer float32", "bf16", "float32"),
    Comparison("float32, in Lightning's Trainer", "float32 trainer", "float32"),
    Comparison("bf16 autocast on both sides", "bf16", "bf16"),
)
