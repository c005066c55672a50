// Small helpers around the document's elements.

/**
 * The element with an id. Throws where there is none: page and modules belong together.
 * @template {HTMLElement} E @param {string} id @param {new () => E} type @returns {E}
 */
export function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} #${id}`);
  return found;
}

/**
 * The one element inside another that a selector finds. Throws where there is none.
 * @template {Element} E @param {ParentNode} within @param {string} selector @param {new () => E} type @returns {E}
 */
export function part(within, selector, type) {
  const found = within.querySelector(selector);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} ${selector}`);
  return found;
}

/**
 * @template {keyof HTMLElementTagNameMap} K @param {K} tag @param {Partial<HTMLElementTagNameMap[K]>} [properties]
 * @param {(Node | string)[]} children @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/**
 * Set what a field shows; where it shows that already the caret stays.
 * @param {{ value: string }} field @param {string} value
 */
export function setValue(field, value) {
  if (field.value !== value) field.value = value;
}

/** @param {HTMLElement} field @param {string} text */
export function setText(field, text) {
  if (field.textContent !== text) field.textContent = text;
  field.hidden = text === "";
}

/**
 * Show or hide a part of the page. What had the focus inside of a part that goes leaves it to the first field of all.
 * @param {string} id @param {boolean} shown @param {string} [next] what has the focus then
 */
export function setShown(id, shown, next = "prompt") {
  const which = element(id, HTMLElement);
  const focused = which.contains(document.activeElement);
  which.hidden = !shown;
  if (!shown && focused) element(next, HTMLElement).focus();
}

/** Say something to those who hear the page. @param {string} text */
export function announce(text) {
  element("announcer", HTMLElement).textContent = text;
}
