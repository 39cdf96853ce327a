"use strict";
// Areas of the class "wide" can be reached and moved by keyboard while they hold more than they show.
{
  const update = (area) => {
    const isLarger = area.scrollWidth > area.clientWidth + 1 || area.scrollHeight > area.clientHeight + 1;
    if (isLarger) {
      area.tabIndex = 0;
      area.setAttribute("role", "group");
      area.setAttribute("aria-label", "Scrolls");
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) area.removeAttribute(name);
    }
  };
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) update(target.closest(".wide"));
  });
  for (const area of document.querySelectorAll(".wide")) {
    observer.observe(area);
    for (const child of area.children) observer.observe(child);
  }
}
