/* What pages do beyond Gradio: problems in place, not in toasts; arrow keys between tabs; words for
   pictures. */
window.svfit = (() => {
  const soon = () => new Promise(seen => requestAnimationFrame(() => requestAnimationFrame(seen)));

  const inputOf = block =>
    block.querySelector("textarea, input:not([type=file]):not([type=hidden])") ??
    block.querySelector("button, input");

  /** The block of a field; folded settings are opened for it. */
  async function blockOf(page, field) {
    const find = () => document.getElementById(`${page}-${field}`);
    if (!find()?.checkVisibility()) {
      const folds = document.querySelectorAll(
        `[id^="${page}-"] button.label-wrap:not(.open)`);
      for (const fold of folds) {
        fold.click();
        for (let i = 0; i < 20 && !find()?.checkVisibility(); i++) await soon();
        if (find()?.checkVisibility()) break;
        fold.click();
      }
    }
    return find();
  }

  function unmark(input) {
    const note = document.getElementById(input.getAttribute("aria-describedby"));
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
    note?.remove();
  }

  /** Mark the field that a problem names, with its sentence, and go there; unmark all others. */
  async function mark(page, text) {
    document.querySelectorAll(`[id^="${page}-"] [aria-invalid=true]`).forEach(unmark);
    const problem = new DOMParser().parseFromString(text ?? "", "text/html").querySelector(".problem");
    if (!problem?.dataset.field) return;
    const block = await blockOf(page, problem.dataset.field);
    if (!block) return;
    const input = inputOf(block);
    const note = document.createElement("p");
    note.id = `${block.id}-problem`;
    note.className = "field-problem";
    note.textContent = problem.textContent;
    block.append(note);
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", note.id);
    block.addEventListener("input", () => unmark(input), {once: true});
    input.focus({preventScroll: true});
    block.scrollIntoView({block: "center"});
  }

  /** Arrow keys, Home and End move between the tabs, as ARIA's pattern for tabs has it. */
  function moveTab(event) {
    const list = event.target.closest?.("[role=tablist]");
    if (!list || event.target.getAttribute("role") !== "tab") return;
    const tabs = [...list.querySelectorAll("[role=tab]")].filter(tab => tab.checkVisibility());
    const here = tabs.indexOf(event.target), last = tabs.length - 1;
    const to = {
      ArrowRight: here === last ? 0 : here + 1,
      ArrowLeft: here === 0 ? last : here - 1,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tabs[to].click();
    tabs[to].focus();
  }
  document.addEventListener("keydown", moveTab);

  // Gradio's own errors, such as of a file that is too large, come as toasts over the page. They are
  // put where the visitor did something last.
  let last = null;
  const remember = event => {
    const place = event.target.closest?.(".block") ?? event.target.closest?.("button");
    if (!place || event.target.closest(".toast-wrap")) return;
    document.querySelectorAll(".problem.from-toast").forEach(old => old.remove());
    last = place;
  };
  for (const kind of ["click", "drop", "change"]) document.addEventListener(kind, remember, true);

  async function stand(toast) {
    await soon();  // until it has its text
    const panel = [...document.querySelectorAll("[role=tabpanel]")].find(p => p.checkVisibility());
    const place = last?.checkVisibility() ? last : panel?.querySelector(".status");
    if (!place) return;
    const problem = document.createElement("div");
    problem.className = "problem from-toast";
    problem.setAttribute("role", "alert");
    const texts = [...toast.querySelectorAll(".toast-text, .toast-message, .toast-msg")];
    problem.textContent = (texts.at(-1) ?? toast).textContent.trim();
    place.after(problem);
    toast.querySelector(".toast-close")?.click();
  }
  new MutationObserver(changes => {
    for (const {addedNodes} of changes) for (const node of addedNodes) {
      node.querySelectorAll?.(".toast-body.error").forEach(stand);
    }
  }).observe(document.documentElement, {childList: true, subtree: true});

  /** Say in words what a picture shows, for Gradio has no words for it. */
  async function describe(id, text) {
    await soon();
    const picture = document.querySelector(`#${id} img`);
    if (picture) picture.alt = text;
  }

  return {describe, mark};
})();
