// Pictures of arrays: how a number is written, and a heat map as an image.

// As in previews.py, which writes the cells.
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+";
// From the most negative through 0 to the most positive: darker to lighter, so that grey shows the sign.
const SHADES = [[10, 36, 99], [58, 96, 158], [128, 134, 139], [222, 178, 84], [255, 236, 150]];
const BROKEN = [200, 0, 110];
const images = new Map();

// A picture as an object; it is written as a list, to be short. Of few numbers it has these and cells.
function unpack([shape, dtype, rows, columns], content) {
  if (typeof content[0] !== "string") return { shape, dtype, rows, columns, numbers: content[0], cells: content[1] };
  const [cells, low, high, rms, broken] = content;
  return { shape, dtype, rows, columns, cells, low, high, rms, broken };
}

function shade(letter) {
  if (letter === "!") return BROKEN;
  const at = (LETTERS.indexOf(letter) / (LETTERS.length - 1)) * (SHADES.length - 1);
  const low = Math.min(Math.floor(at), SHADES.length - 2);
  return SHADES[low].map((c, i) => Math.round(c + (SHADES[low + 1][i] - c) * (at - low)));
}

// The heat map of a picture as an address that an image can show.
function heatMap(picture) {
  if (images.has(picture)) return images.get(picture);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.columns, picture.rows];
  const context = canvas.getContext("2d");
  const image = context.createImageData(picture.columns, picture.rows);
  [...picture.cells].forEach((letter, i) => image.data.set([...shade(letter), 255], 4 * i));
  context.putImageData(image, 0, 0);
  images.set(picture, canvas.toDataURL());
  return images.get(picture);
}

// A number to some digits, with a true minus sign; before the point no digit is left out, below a million.
function short(x, digits = 4) {
  if (typeof x === "string") return x.replace("-", "−");
  if (typeof x === "boolean") return x ? "true" : "false";
  const size = Math.abs(x);
  const precision = Math.max(digits, String(Math.floor(size)).length);
  const text = size !== 0 && (size >= 1e6 || size < 1e-4)
    ? x.toExponential(digits - 1).replace(/\.?0+e/, "e")
    : String(Number(x.toPrecision(precision)));
  return text.replaceAll("-", "−");
}

// A number in at most so many letters, if some digits fewer can do that.
function fitting(x, letters) {
  for (let digits = 4; digits > 1; digits--) {
    const text = short(x, digits);
    if (text.length <= letters) return text;
  }
  return typeof x === "number" ? short(x, 1) : short(x);
}

function shapeOf(picture) {
  return picture.shape.length ? picture.shape.join(" × ") : "a number";
}

// What a picture shows, in words.
function inWords(picture) {
  if (picture.numbers) {
    if (picture.numbers.length === 1) return short(picture.numbers[0]);
    if (!picture.numbers.length) return "empty";
    return `[${picture.numbers.map((x) => short(x)).join(", ")}]`;
  }
  const range = picture.low !== "nan" ? `from ${short(picture.low)} to ${short(picture.high)}` : "no finite number";
  return `${shapeOf(picture)} numbers ${range}`;
}
