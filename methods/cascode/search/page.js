// Keys and copying: the page works without them.
"use strict";
const field = document.querySelector("input[name=q]");
const said = document.getElementById("said");
const results = [...document.querySelectorAll("article")];
const steps = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
let clearing;

for (const element of document.querySelectorAll("[hidden]")) element.hidden = false;

async function copy(result) {
  const place = result.querySelector(".place code");
  let copied = true;
  try {
    await navigator.clipboard.writeText(place.textContent);
  } catch { // the browser has no such interface, or does not allow it
    getSelection().selectAllChildren(place);
    copied = document.execCommand("copy");
  }
  said.textContent = copied ? `copied ${place.textContent}` : "selected: copy it with Ctrl+C";
  clearTimeout(clearing);
  clearing = setTimeout(() => { said.textContent = ""; }, 3000); // else it is read out only once
}

document.addEventListener("click", ({ target }) => {
  if (target.closest("article button")) copy(target.closest("article"));
});

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  const result = target.closest("article");
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (target.matches("input, select")) {
    if (key !== "Escape") return;
    target.blur();
  } else if (key === "/") {
    field.focus();
    field.select();
  } else if (Object.hasOwn(steps, key)) {
    const next = results[Math.max(results.indexOf(result) + steps[key], 0)];
    if (!next) return;
    next.focus();
  } else if (target === result && (key === "Enter" || key === " ")) {
    const details = result.querySelector("details");
    if (details) details.open = !details.open;
  } else if (key === "c" && result) {
    copy(result);
  } else {
    return;
  }
  event.preventDefault(); // Escape would empty the field, arrows would scroll
});
