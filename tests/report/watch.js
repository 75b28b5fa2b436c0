// What goes wrong in the page, from its beginning on.
window.seen = { errors: [], blocked: [] };
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.blocked.push(`${event.violatedDirective} ${event.blockedURI}`));
for (const kind of ["error", "warn"]) {
  const own = console[kind];
  console[kind] = (...words) => {
    seen.errors.push(words.join(" "));
    own(...words);
  };
}
