"use strict";
// Elements of the class "wide" can be focused and scrolled by keyboard while their content is larger than they are.
{
  const update = (area) => {
    const isLarger = area.scrollWidth > area.clientWidth + 1 || area.scrollHeight > area.clientHeight + 1;
    if (isLarger) {
      area.tabIndex = 0;
      area.setAttribute("role", "group");
      area.setAttribute("aria-label", "Scrollable area");
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
