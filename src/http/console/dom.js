// Makes elements. What is given as text stays text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element: attributes, `on<event>` listeners, children. What is undefined, null or false is left out. */
export function h(name, props, ...children) {
  return fill(document.createElement(name), props, children);
}

/** The same for SVG. */
export function s(name, props, ...children) {
  return fill(document.createElementNS(SVG, name), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...shown(children));
  return element;
}

/** Replaces what is in an element. */
export function put(element, ...children) {
  element.replaceChildren(...shown(children));
}

/** Has these elements in an element, and the focus where it was: what stays is not touched if it can be helped. */
export function arrange(element, children) {
  const are = [...element.children];
  if (are.length === children.length && are.every((child, index) => child === children[index])) return;
  const focused = document.activeElement;
  element.replaceChildren(...children);
  if (element.contains(focused)) focused.focus();
}

/** Sets a text only if it differs: what is read aloud is not read again, and a selection stays. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const shown = (children) =>
  children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false);

export function icon(name) {
  return s("svg", { class: "icon", "aria-hidden": "true", viewBox: "0 0 16 16" }, s("use", { href: `#i-${name}` }));
}

/** A state: its shape, its word, and a colour besides. `title` says it in a sentence. */
export function badge({ shape, tone, word, title }) {
  return h("span", { class: `badge ${tone}`, title }, icon(shape), word);
}

/** Long enough to read it twice. */
const SAID_MS = 12_000;
let forget;

/** Tells what came of something, at the foot of the page for a while and to who listens. */
export function announce(text) {
  const said = byId("said");
  said.textContent = `${new Date().toTimeString().slice(0, 8)}  ${text}`;
  clearTimeout(forget);
  forget = setTimeout(() => { said.textContent = ""; }, SAID_MS);
}

/** Asks in the page; resolves to whether it was agreed to. */
export function confirmed(question, { detail, action }) {
  return new Promise((resolve) => {
    const close = (answer) => () => dialog.close(answer);
    const dialog = h("dialog", { "aria-labelledby": "question" },
      h("h2", { id: "question" }, question),
      detail && h("p", {}, detail),
      h("div", { class: "row end" },
        h("button", { type: "button", onclick: close("no"), autofocus: true }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: close("yes") }, action)));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
