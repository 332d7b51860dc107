/* Moves the square by dragging it, and sizes it by dragging its corner. Runs with `element`, `props`
   and `trigger` of a gr.HTML whose value is {src, alt, x, y, zoom, width, height}. */
let drag = null;
const among = (low, value, high) => Math.min(Math.max(value, low), high);

const place = ({x, y, zoom, width, height}) => {
  const side = Math.min(width, height) / zoom;
  return {left: x * (width - side), top: y * (height - side), side};
};

const draw = crop => {
  const {left, top, side} = place(crop);
  const square = element.querySelector(".crop-square");
  if (!square) return;
  square.style.left = `${100 * left / crop.width}%`;
  square.style.top = `${100 * top / crop.height}%`;
  square.style.width = `${100 * side / crop.width}%`;
  square.style.height = `${100 * side / crop.height}%`;
};

const dragged = event => {
  const {crop, scale, sizing} = drag;
  const {left, top, side} = place(crop);
  const dx = (event.clientX - drag.x) * scale, dy = (event.clientY - drag.y) * scale;
  const shorter = Math.min(crop.width, crop.height);
  const room = Math.min(crop.width - left, crop.height - top);
  const wanted = sizing ? among(shorter / crop.maxZoom, side + Math.max(dx, dy), room) : side;
  const part = (start, length) =>
    length - wanted < 1e-6 ? 0.5 : among(0, start / (length - wanted), 1);
  return {
    ...crop,
    zoom: shorter / wanted,
    x: part(sizing ? left : left + dx, crop.width),
    y: part(sizing ? top : top + dy, crop.height),
  };
};

element.addEventListener("pointerdown", event => {
  if (!event.target.closest(".crop-square") || !props.value) return;
  const scale = props.value.width / element.querySelector(".crop").clientWidth;
  const sizing = Boolean(event.target.closest(".crop-corner"));
  drag = {x: event.clientX, y: event.clientY, crop: {...props.value}, scale, sizing};
  element.setPointerCapture(event.pointerId);
  event.preventDefault();
});
element.addEventListener("pointermove", event => drag && draw(dragged(event)));
element.addEventListener("pointerup", event => {
  if (!drag) return;
  props.value = dragged(event);
  drag = null;
  trigger("input");
});
element.addEventListener("pointercancel", () => {
  if (drag) draw(drag.crop);
  drag = null;
});
