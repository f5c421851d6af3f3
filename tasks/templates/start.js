// What the page listens to, and its first view.

window.addEventListener("hashchange", show);
window.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || shownQuery === null) return;
  const view = asked();
  if (view.sequence !== null) turnTo({ ...view, sequence: null });
  else location.hash = "";
});
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

const wanted = document.getElementById("wanted");
wanted?.addEventListener("input", () => {
  const words = wanted.value.toLowerCase().split(/\s+/).filter(Boolean);
  const lines = [...document.querySelectorAll("#queries tbody tr")];
  for (const line of lines) line.hidden = !words.every((word) => line.textContent.toLowerCase().includes(word));
  const left = lines.filter((line) => !line.hidden).length;
  document.getElementById("found").textContent = words.length ? `${left} of ${lines.length}` : "";
});

if (isReadable) show();
else document.getElementById("too-old").hidden = false;
