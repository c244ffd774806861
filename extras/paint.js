// The canvas of paint.py, a gr.HTML. `element` is its place on the page, `props` comes from Python.
// props.value holds two pngs as data URLs with a space between: the label map in the classes'
// colours, and the marked area. A stroke gives whole pixels a class's colour, without blending,
// and is sent to Python when it ends.

element.innerHTML = `<style>
  .stack { position: relative; aspect-ratio: ${props.columns} / ${props.rows}; }
  .stack canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none;
    image-rendering: pixelated; cursor: crosshair; }
  .stack canvas + canvas { opacity: 0.5; }
  .tools { display: flex; flex-wrap: wrap; gap: 4px; margin-top: 8px; font-size: 13px;
    max-height: 30vh; overflow-y: auto; }
  .tools button { display: flex; align-items: center; gap: 5px; padding: 1px 7px;
    border: 2px solid #ddd; border-radius: 6px; }
  .tools button.chosen { border-color: #f60; }
  .tools i { width: 14px; height: 14px; border-radius: 3px; }
  .tools input { width: 90px; vertical-align: middle; }
</style><div class="stack"><canvas></canvas><canvas></canvas></div>
<div class="tools"><label>brush <input type="range" min="0" max="12" value="2"></label></div>`;

const canvases = [...element.querySelectorAll("canvas")]; // label map, area; the area lies on top
const contexts = canvases.map((canvas) => {
  [canvas.width, canvas.height] = [props.columns, props.rows];
  return canvas.getContext("2d", { willReadFrequently: true });
});
const past = []; // both canvases before each stroke, for "undo"
let brush = null; // { context, colour }; without a colour it wipes
let last = null; // the pixel under the pointer while its button is down

function show() {
  (props.value || "").split(" ").forEach((url, k) => {
    const picture = new Image();
    picture.onload = () => {
      contexts[k].clearRect(0, 0, props.columns, props.rows);
      contexts[k].drawImage(picture, 0, 0);
    };
    picture.src = url;
  });
}

function send() {
  props.value = canvases.map((canvas) => canvas.toDataURL()).join(" ");
  trigger("input");
}

function pixel(event) {
  const box = canvases[0].getBoundingClientRect();
  return [Math.floor(((event.clientX - box.left) / box.width) * props.columns),
          Math.floor(((event.clientY - box.top) / box.height) * props.rows)];
}

function paintLine(from, to) {
  const radius = Number(element.querySelector("input").value);
  const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
  for (let k = 0; k <= steps; k++) {
    const [x, y] = [0, 1].map((i) => Math.round(from[i] + ((to[i] - from[i]) * k) / steps));
    for (let dy = -radius; dy <= radius; dy++) { // a disc, row by row
      const half = Math.floor(Math.sqrt((radius + 0.5) ** 2 - dy ** 2));
      const row = [x - half, y + dy, 2 * half + 1, 1];
      brush.context.clearRect(...row);
      brush.context.fillStyle = brush.colour || "transparent";
      brush.context.fillRect(...row);
    }
  }
}

canvases[1].onpointerdown = (event) => {
  event.target.setPointerCapture(event.pointerId);
  past.push(contexts.map((context) => context.getImageData(0, 0, props.columns, props.rows)));
  past.splice(0, past.length - 50);
  last = pixel(event);
  paintLine(last, last);
};
canvases[1].onpointermove = (event) => {
  if (last) paintLine(last, (last = pixel(event)));
};
canvases[1].onpointerup = canvases[1].onpointercancel = () => {
  if (last) send();
  last = null;
};

function addButton(name, colour, action) {
  const button = document.createElement("button");
  button.innerHTML = colour ? `<i style="background: ${colour}"></i>` : "";
  button.append(name);
  button.onclick = () => action(button);
  element.querySelector(".tools").append(button);
}

function addBrush(name, context, colour) {
  addButton(name, colour, (button) => {
    brush = { context, colour };
    element.querySelectorAll("button").forEach((b) => b.classList.toggle("chosen", b === button));
  });
}

props.names.forEach((name, k) => addBrush(name, contexts[0], props.colours[k]));
addBrush("area", contexts[1], "#ff00ff");
addBrush("no area", contexts[1], null);
addButton("undo", null, () => {
  const before = past.pop();
  if (!before) return;
  before.forEach((pixels, k) => contexts[k].putImageData(pixels, 0, 0));
  send();
});
element.querySelectorAll("button")[1].click(); // class 0 is often "unknown"
watch("value", show);
show();
