// A visitor who reads, marks with the keyboard, filters, searches, scrolls, and changes the theme.
addEventListener("load", async () => {
  const pause = (time) => new Promise((done) => setTimeout(done, time));
  const until = async (holds) => {
    for (let i = 0; i < 600 && !holds(); i++) await pause(100);
  };
  const press = (key) =>
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const cards = () => [...document.querySelectorAll(".sample")];
  const set = (id, value, kind) => {
    const element = document.getElementById(id);
    element.value = value;
    element.dispatchEvent(new Event(kind));
  };
  await until(() => document.querySelectorAll("figure svg").length >= 2);
  seen.charts = document.querySelectorAll("figure svg").length;
  seen.described = document.querySelectorAll("figure [aria-label]").length;
  seen.cards = cards().length;
  seen.first = cards()[0].querySelector(".text").textContent;
  seen.option = document.getElementById("given").options[1].textContent;
  seen.title = document.title;
  seen.doubt = document.querySelector(".doubts li").textContent;

  cards()[0].focus();
  for (const key of ["w", "r", "u", "ArrowUp", "Backspace", "ArrowDown", "w"]) press(key);
  seen.focused = Number(document.activeElement.dataset.place);
  seen.announced = document.getElementById("announce").textContent;
  const select = cards().find((card) => card.dataset.place === "0").querySelector("select");
  select.value = select.options[select.options.length - 1].value;
  seen.chosen = Number(select.value);
  select.dispatchEvent(new Event("change"));
  seen.csv = exportDecisions();

  set("decision", "1", "change");
  seen.wrongs = cards().length;
  set("decision", "", "change");
  set("given", "2", "change");
  seen.given = document.getElementById("count").textContent;
  set("given", "", "change");
  set("search", " Sample 1199 ", "input");
  await until(() => cards().length === 1);
  seen.searched = cards().map((card) => card.querySelector(".text").textContent);
  set("search", "", "input");
  await until(() => cards().length > 1);
  const list = document.getElementById("viewport");
  list.scrollTop = list.scrollHeight;
  await until(() => cards().at(-1).getAttribute("aria-posinset") === cards().at(-1).getAttribute("aria-setsize"));
  seen.scrolled = cards().length;
  seen.last = cards().at(-1).getAttribute("aria-posinset");
  seen.unlabelled = [...document.querySelectorAll("button, select, input")].filter(
    (element) => !element.textContent.trim() && !element.closest("label") && !element.getAttribute("aria-label"),
  ).length;
  document.getElementById("theme").click();
  seen.theme = document.documentElement.dataset.theme;
  await pause(300);
  seen.owned = window.owned === undefined ? null : window.owned;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
