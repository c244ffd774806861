// The canvas of paint.py, a gr.HTML. `element` is its place on the page, `props` comes from Python.
// props.value holds two pngs as data URLs with a space between: the label map in the classes'
// colours, and the area that gets another weather. A stroke gives whole pixels a colour, without
// blending. It is sent to Python when it ends, and the area is wiped.

element.innerHTML = `<style>
  .stack { position: relative; aspect-ratio: ${props.columns} / ${props.rows}; }
  .stack canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none;
    image-rendering: pixelated; cursor: crosshair; border-radius: 8px; }
  .stack canvas + canvas { opacity: 0.6; }
  .tools { display: flex; flex-wrap: wrap; gap: 5px; margin-top: 10px; font-size: 13px;
    max-height: 24vh; overflow-y: auto; align-items: center; }
  .tools button { display: flex; align-items: center; gap: 6px; padding: 2px 8px;
    border: 2px solid #ddd; border-radius: 7px; }
  .tools button.chosen { border-color: #f60; }
  .tools i { width: 14px; height: 14px; border-radius: 3px; }
  .tools input { width: 90px; vertical-align: middle; }
</style><div class="stack"><canvas></canvas><canvas></canvas></div>
<div class="tools"><label>brush <input type="range" min="0" max="16"></label></div>
<div class="tools"></div>`;

const canvases = [...element.querySelectorAll("canvas")]; // label map, area; the area lies on top
const contexts = canvases.map((canvas) => {
  [canvas.width, canvas.height] = [props.columns, props.rows];
  return canvas.getContext("2d", { willReadFrequently: true });
});
const [weatherTools, classTools] = element.querySelectorAll(".tools");
const slider = element.querySelector("input");
slider.value = Math.round(props.rows / 24);
let tool = null; // { context, colour, circle }
let first = null; // the pixel where the button of the pointer went down
let last = null; // the pixel under the pointer while its button is down
let sent = ""; // the value that Python knows already

function wipe(context) {
  context.clearRect(0, 0, props.columns, props.rows);
}

function show() {
  if (!props.value || props.value === sent) return;
  props.value.split(" ").forEach((url, k) => {
    const picture = new Image();
    picture.onload = () => {
      wipe(contexts[k]);
      contexts[k].drawImage(picture, 0, 0);
    };
    picture.src = url;
  });
}

function send() {
  sent = props.value = canvases.map((canvas) => canvas.toDataURL()).join(" ");
  trigger("input");
  setTimeout(() => last || wipe(contexts[1]), 500); // the mark is seen for a moment
}

function pixel(event) {
  const box = canvases[0].getBoundingClientRect();
  return [Math.floor(((event.clientX - box.left) / box.width) * props.columns),
          Math.floor(((event.clientY - box.top) / box.height) * props.rows)];
}

function fillDisc([x, y], radius) {
  tool.context.fillStyle = tool.colour;
  for (let dy = -radius; dy <= radius; dy++) { // row by row
    const half = Math.floor(Math.sqrt((radius + 0.5) ** 2 - dy ** 2));
    tool.context.fillRect(x - half, y + dy, 2 * half + 1, 1);
  }
}

function paintLine(from, to) {
  const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
  for (let k = 0; k <= steps; k++) {
    const between = [0, 1].map((i) => Math.round(from[i] + ((to[i] - from[i]) * k) / steps));
    fillDisc(between, Number(slider.value));
  }
}

function paintCircle(centre, rim) {
  wipe(tool.context);
  fillDisc(centre, Math.round(Math.hypot(rim[0] - centre[0], rim[1] - centre[1])));
}

function follow(event) {
  const here = pixel(event);
  if (tool.circle) paintCircle(first, here);
  else paintLine(last, here);
  last = here;
}

canvases[1].onpointerdown = (event) => {
  event.target.setPointerCapture(event.pointerId);
  wipe(contexts[1]);
  first = last = pixel(event);
  follow(event);
};
canvases[1].onpointermove = (event) => {
  if (last) follow(event);
};
canvases[1].onpointerup = canvases[1].onpointercancel = () => {
  const painted = last;
  last = null;
  if (painted) send();
};

function addTool(place, name, context, colour, circle) {
  const button = document.createElement("button");
  button.innerHTML = `<i style="background: ${colour}"></i>`;
  if (circle) button.firstChild.style.borderRadius = "50%";
  button.append(name);
  button.onclick = () => {
    tool = { context, colour, circle };
    element.querySelectorAll("button").forEach((b) => b.classList.toggle("chosen", b === button));
  };
  place.append(button);
}

if (props.local) {
  addTool(weatherTools, "other weather: circle", contexts[1], "#ff4fc3", true);
  addTool(weatherTools, "other weather: brush", contexts[1], "#ff4fc3", false);
}
props.names.forEach((name, k) => addTool(classTools, name, contexts[0], props.colours[k], false));
const buttons = classTools.querySelectorAll("button");
buttons[Math.min(1, buttons.length - 1)].click(); // class 0 is often "unknown"
document.addEventListener("keydown", (event) => {
  const undo = (event.ctrlKey || event.metaKey) && event.key === "z";
  if (undo) document.querySelector("#undo").click();
});
watch("value", show);
show();
