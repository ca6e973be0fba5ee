document.documentElement.classList.add("scripted");
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  let copied = true;
  try {
    await navigator.clipboard.writeText(source.value);
  } catch {  // a page opened from disk may not have the clipboard
    source.hidden = false;
    source.select();
    copied = document.execCommand("copy");
    source.hidden = copied;
  }
  const label = button.textContent;
  button.textContent = copied ? "copied" : "press Ctrl-C";
  setTimeout(() => { button.textContent = label; }, 1500);
});
