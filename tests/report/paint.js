// A visitor who waits until there is something to see.
addEventListener("load", () => {
  const look = () => {
    const paint = performance.getEntriesByType("paint");
    if (paint.length < 2) return requestAnimationFrame(look);
    seen.paint = paint.map((entry) => entry.startTime);
    seen.cards = document.querySelectorAll(".sample").length;
    const result = document.createElement("pre");
    result.id = "result";
    result.textContent = JSON.stringify(seen);
    document.body.append(result);
  };
  look();
});
