// Nodes. Text is set as text and never read as HTML, so that what a model says stays what it said.

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "css") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  append(node, children);
  return node;
}

export function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

export function fill(node, ...children) {
  node.replaceChildren();
  return append(node, children);
}

export function card(title, note, ...children) {
  const id = `card-${cardNumber++}`;
  return h("section", { class: "card", "aria-labelledby": id },
    h("div", { class: "card-head" }, h("h2", { id }, title), note && h("div", { class: "note" }, note)), children);
}
let cardNumber = 0;

export function empty(text) {
  return h("p", { class: "empty" }, text);
}

// A few choices of which one is taken.
export function choice(label, options, chosen, onchange) {
  const buttons = options.map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => take(value) }, text));
  const take = (value) => {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(options[index][0] === value)));
    onchange(value);
  };
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

export function select(label, options, chosen, onchange) {
  const node = h("select", { onchange: () => onchange(node.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
  return h("label", { class: "field" }, h("span", {}, label), node);
}

// A tooltip by the pointer, or by what has the focus.
const tip = () => document.getElementById("tip");

export function showTip(x, y, ...children) {
  const node = fill(tip(), ...children);
  node.hidden = false;
  const { width, height } = node.getBoundingClientRect();
  node.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
  node.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 10) : y + 18}px`;
}

export function hideTip() {
  tip().hidden = true;
}

export function copyable(command) {
  const button = h("button", { type: "button", class: "small" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command);
    button.textContent = "Copied";
  });
  return h("span", { class: "command" }, h("code", { tabindex: 0 }, command), button);
}
