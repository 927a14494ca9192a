/** Says that a module of the dashboard did not load: then none of them runs. */

addEventListener("error", ({ target }) => {
  if (target.type !== "module") return;
  const said = document.querySelector("#app [role=alert]");
  said.previousElementSibling.remove();
  said.hidden = false;
  said.querySelector("button").onclick = () => location.reload();
}, true);
