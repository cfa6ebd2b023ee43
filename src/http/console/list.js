// A list of any length of which only the rows in sight are in the page.

import { h } from "./dom.js";

/** Rows above and below what is in sight, so that scrolling shows no gap. */
const SPARE = 8;
/** For ids in the page: names may have blanks. */
let rows = 0;

/**
 * A listbox. `row(item)` makes a row's children; `name(item)` names an item, the same each time; `chosen(item)` is
 * told when one is chosen.
 */
export class List {
  items = [];
  #row;
  #name;
  #chosen;
  #rows = new Map();
  #active = -1;
  #activeName;
  #selected;
  #isDrawing = false;

  constructor({ label, row, name, chosen }) {
    this.#row = row;
    this.#name = name;
    this.#chosen = chosen;
    this.space = h("div", { class: "space" });
    this.element = h("div", {
      class: "list", role: "listbox", tabindex: 0, "aria-label": label,
      onscroll: () => this.#soon(),
      onkeydown: (event) => this.#key(event),
      onfocus: () => this.#focused(),
      onblur: () => this.#soon(),
      onclick: (event) => this.#clicked(event),
    }, this.space);
    new ResizeObserver(() => this.#soon()).observe(this.element);
  }

  /** Other items, or the same ones changed. */
  show(items) {
    this.items = items;
    // At once, so that whoever goes to the end before the next frame comes to the end of these.
    this.#stretch(this.#height());
    // Whoever stands on an item stays on it wherever it has gone.
    if (this.#activeName !== undefined && this.#nameAt(this.#active) !== this.#activeName) {
      this.#active = items.findIndex((item) => this.#name(item) === this.#activeName);
    }
    this.#soon();
  }

  /** Marks the item that is shown elsewhere. */
  select(name) {
    this.#selected = name;
    this.#soon();
  }

  focus() {
    this.element.focus();
  }

  #nameAt(index) {
    const item = this.items[index];
    return item && this.#name(item);
  }

  /** Once a frame, however often it is asked for. */
  #soon() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#draw();
    });
  }

  #draw() {
    const height = this.#height();
    const { scrollTop, clientHeight } = this.element;
    this.#stretch(height);
    const first = Math.max(0, Math.floor(scrollTop / height) - SPARE);
    const last = Math.min(this.items.length, Math.ceil((scrollTop + clientHeight) / height) + SPARE);
    const seen = new Set();
    const isFocused = document.activeElement === this.element;
    for (let index = first; index < last; index += 1) {
      const name = this.#nameAt(index);
      seen.add(name);
      this.#place(name, index, height, isFocused);
    }
    for (const [name, row] of this.#rows) {
      if (seen.has(name)) continue;
      row.remove();
      this.#rows.delete(name);
    }
    const active = this.#rows.get(this.#nameAt(this.#active));
    if (active) this.element.setAttribute("aria-activedescendant", active.id);
    else this.element.removeAttribute("aria-activedescendant");
  }

  /** As long as all rows are, of which each is so high. */
  #stretch(height) {
    this.space.style.height = `${this.items.length * height}px`;
  }

  #place(name, index, height, isFocused) {
    let row = this.#rows.get(name);
    if (!row) {
      rows += 1;
      row = h("div", { class: "item", role: "option", id: `row-${rows}` });
      this.#rows.set(name, row);
      this.space.append(row);
    }
    row.replaceChildren(...this.#row(this.items[index]));
    row.style.transform = `translateY(${index * height}px)`;
    row.setAttribute("aria-setsize", this.items.length);
    row.setAttribute("aria-posinset", index + 1);
    row.setAttribute("aria-selected", name === this.#selected);
    row.classList.toggle("active", isFocused && index === this.#active);
  }

  #height() {
    return Number.parseFloat(getComputedStyle(this.element).getPropertyValue("--row")) || 36;
  }

  #focused() {
    if (this.#active < 0 && this.items.length > 0) this.#go(Math.max(0, this.#indexOf(this.#selected)));
    this.#soon();
  }

  #indexOf(name) {
    return name === undefined ? -1 : this.items.findIndex((item) => this.#name(item) === name);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.#height()) - 1);
    const to = {
      ArrowDown: this.#active + 1, ArrowUp: this.#active - 1, PageDown: this.#active + page,
      PageUp: this.#active - page, Home: 0, End: this.items.length - 1,
    }[event.key];
    if (to !== undefined) {
      this.#go(Math.min(Math.max(to, 0), this.items.length - 1));
    } else if ((event.key === "Enter" || event.key === " ") && this.items[this.#active]) {
      this.#chosen(this.items[this.#active]);
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Makes an item the active one, and brings it into sight. */
  #go(index) {
    this.#active = index;
    this.#activeName = this.#nameAt(index);
    const height = this.#height();
    const { scrollTop, clientHeight } = this.element;
    if (index * height < scrollTop) this.element.scrollTop = index * height;
    else if ((index + 1) * height > scrollTop + clientHeight) this.element.scrollTop = (index + 1) * height - clientHeight;
    this.#soon();
  }

  #clicked(event) {
    if (!event.target.closest(".item")) return;
    const top = event.clientY - this.element.getBoundingClientRect().top + this.element.scrollTop;
    const item = this.items[Math.floor(top / this.#height())];
    if (!item) return;
    this.#go(this.items.indexOf(item));
    this.#chosen(item);
  }
}
