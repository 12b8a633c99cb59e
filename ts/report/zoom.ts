/** The report's only script: graphs are zoomed and moved by wheel, two fingers, buttons and keys. Without it they are still there. */
export const SCRIPT = `
for (const svg of document.querySelectorAll('svg.graph')) {
  const all = svg.viewBox.baseVal;
  const home = [all.x, all.y, all.width, all.height];
  let view = [...home];
  const show = () => svg.setAttribute('viewBox', view.join(' '));
  const zoom = (by, x = 0.5, y = 0.5) => {
    const width = Math.min(home[2] * 4, Math.max(home[2] / 80, view[2] * by));
    const f = width / view[2];
    view = [view[0] + view[2] * (1 - f) * x, view[1] + view[3] * (1 - f) * y, width, view[3] * f];
    show();
  };
  const move = (x, y) => { view[0] += x * view[2]; view[1] += y * view[3]; show(); };
  const reset = () => { view = [...home]; show(); };
  // A graph that would be too small to read begins at what it is about.
  const start = () => {
    const { width, height } = svg.getBoundingClientRect();
    if (width === 0) return false;
    const scale = Math.max(home[2] / width, home[3] / height);
    const about = svg.querySelector('.node.refused, .node.inside');
    if (scale > 1.6 && about) {
      const box = about.getBBox();
      view = [box.x + box.width / 2 - 0.6 * width, Math.max(0, box.y + box.height / 2 - 0.6 * height), 1.2 * width, 1.2 * height];
      show();
    }
    return true;
  };
  if (!start()) {
    const seen = new ResizeObserver(() => { if (start()) seen.disconnect(); });
    seen.observe(svg);
  }
  const at = (e) => { const r = svg.getBoundingClientRect(); return [(e.clientX - r.left) / r.width, (e.clientY - r.top) / r.height, r]; };
  const keys = { '+': () => zoom(0.8), '=': () => zoom(0.8), '-': () => zoom(1.25), '0': reset, ArrowLeft: () => move(-0.1, 0),
    ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1) };
  svg.addEventListener('keydown', (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || !Object.hasOwn(keys, e.key)) return;
    keys[e.key]();
    e.preventDefault();
  });
  svg.addEventListener('wheel', (e) => {
    if (!e.ctrlKey && document.activeElement !== svg) return; // else the page could not be scrolled past it
    const [x, y] = at(e);
    zoom(e.deltaY > 0 ? 1.15 : 1 / 1.15, x, y);
    e.preventDefault();
  }, { passive: false });
  const fingers = new Map();
  svg.addEventListener('pointerdown', (e) => { fingers.set(e.pointerId, e); svg.setPointerCapture(e.pointerId); });
  for (const end of ['pointerup', 'pointercancel']) svg.addEventListener(end, (e) => fingers.delete(e.pointerId));
  svg.addEventListener('pointermove', (e) => {
    const before = fingers.get(e.pointerId);
    if (!before) return;
    const [x, y, r] = at(e);
    const other = [...fingers.values()].find((f) => f.pointerId !== e.pointerId);
    if (other) {
      const far = (f) => Math.hypot(f.clientX - other.clientX, f.clientY - other.clientY) || 1;
      zoom(far(before) / far(e), x, y);
    } else {
      const scale = Math.max(view[2] / r.width, view[3] / r.height); // the drawing keeps its proportions
      view[0] -= (e.clientX - before.clientX) * scale;
      view[1] -= (e.clientY - before.clientY) * scale;
      show();
    }
    fingers.set(e.pointerId, e);
  });
  const tools = svg.closest('figure').querySelector('.tools');
  if (!tools) continue;
  tools.hidden = false;
  const [larger, smaller, whole] = tools.querySelectorAll('button');
  larger.onclick = () => zoom(0.8);
  smaller.onclick = () => zoom(1.25);
  whole.onclick = reset;
}
`;
