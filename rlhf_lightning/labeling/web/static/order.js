// The order of outputs: places from best to worst, each with one card or, where they are tied, with several.
// A mouse or a finger drags cards between places, or into the gap between two; a card's handle is moved by keys.

const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

export class Order {
  /**
   * @param root the element that holds the places
   * @param cards the elements to order, each with a `.handle` and `data-name`
   * @param changed called with the groups after every change
   * @param announce called with a sentence for screen readers
   */
  constructor(root, cards, changed, announce) {
    Object.assign(this, { root, cards, changed, announce, groups: [], lists: [] });
    for (const [card, element] of cards.entries()) {
      element.querySelector(".handle").addEventListener("keydown", (event) => this.#key(event, card));
      for (const button of element.querySelectorAll("[data-move]")) {
        button.addEventListener("click", () => this.move(card, Number(button.dataset.move), button));
      }
    }
  }

  /** Show groups of cards, best first. */
  show(groups) {
    this.groups = groups.filter((group) => group.length);
    for (const list of this.lists) list.destroy();
    this.lists = [];
    const slots = this.groups.map((group, place) => {
      const slot = make("div", "slot");
      const box = make("section", "place");
      const tie = group.length > 1 ? ` · tie of ${group.length}` : "";
      const end = place === 0 ? " · best" : place === this.groups.length - 1 ? " · worst" : "";
      const title = make("h3", "", `${place + 1}${end}${tie}`);
      const tied = make("div", "tied");
      tied.append(...group.map((card) => this.cards[card]));
      box.append(title, tied);
      slot.append(make("div", "gap"), box);
      return slot;
    });
    slots.at(-1).append(make("div", "gap"));
    this.root.replaceChildren(...slots);
    for (const [card, element] of this.cards.entries()) {
      element.querySelector(".handle").setAttribute("aria-label", `${this.#where(card)} Move with the arrow keys.`);
    }
    this.#listen();
  }

  /** One rank for each card: 1 is best, equal ones are ties. */
  ranks() {
    return this.cards.map((_, card) => 1 + this.#place(card));
  }

  /**
   * Half a step: out of a tie, or from a place of one's own into the tie with the next one.
   * @param by -1 is better, 1 is worse
   */
  move(card, by, focus = null) {
    const place = this.#place(card);
    const tied = this.groups[place].length > 1;
    const groups = this.groups.map((group) => group.filter((other) => other !== card));
    if (tied) groups.splice(by < 0 ? place : place + 1, 0, [card]);
    else if (groups[place + by]) groups[place + by].push(card);
    else groups[place] = [card];
    this.#set(groups, card, focus);
  }

  /** Into the tie of the place with this number; behind the last one where there is none. */
  put(card, number) {
    const groups = this.groups.map((group) => group.filter((other) => other !== card));
    if (groups[number - 1]) groups[number - 1].push(card);
    else groups.push([card]);
    this.#set(groups, card);
  }

  #set(groups, card, focus = null) {
    this.show(groups);
    (focus ?? this.cards[card].querySelector(".handle")).focus();
    this.changed(this.groups);
    this.announce(this.#where(card));
  }

  #place(card) {
    return this.groups.findIndex((group) => group.includes(card));
  }

  #where(card) {
    const place = this.#place(card);
    const others = this.groups[place].filter((other) => other !== card).map((other) => this.cards[other].dataset.name);
    const tie = others.length ? `, tied with ${others.join(" and ")}` : "";
    return `${this.cards[card].dataset.name}: place ${place + 1} of ${this.groups.length}${tie}.`;
  }

  #key(event, card) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
    if (by) this.move(card, by);
    else if (event.key === "Home") this.#set([[card], ...this.groups.map((group) => group.filter((other) => other !== card))], card);
    else if (event.key === "End") this.put(card, Infinity);
    else if (/^[1-9]$/.test(event.key)) this.put(card, Number(event.key));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #listen() {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const drop = () => setTimeout(() => {
      document.body.classList.remove("dragging");
      const lists = [...this.root.querySelectorAll(".tied, .gap")];
      const groups = lists.map((list) => [...list.querySelectorAll(".card")].map((element) => this.cards.indexOf(element)));
      const moved = JSON.stringify(groups.filter((group) => group.length)) !== JSON.stringify(this.groups);
      this.show(groups);
      if (moved) this.changed(this.groups);
    });
    for (const list of this.root.querySelectorAll(".tied, .gap")) {
      this.lists.push(Sortable.create(list, {
        group: "places", handle: "header", draggable: ".card", filter: "[data-move]", preventOnFilter: false,
        animation: still ? 0 : 120, ghostClass: "ghost", forceFallback: true, fallbackOnBody: true,
        fallbackTolerance: 4, emptyInsertThreshold: 12, scrollSensitivity: 60,
        onStart: () => document.body.classList.add("dragging"), onEnd: drop,
      }));
    }
  }
}
