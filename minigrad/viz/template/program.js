// The program of a captured step, below the graph: its lines, and the one that runs now.

class Program {
  constructor(data, element) {
    this.lineOf = data.program.lineOf;
    this.arrays = new Set(data.program.arrays);
    this.box = element.querySelector("pre");
    this.lines = data.program.lines.map((line) => this.line(...line));
    this.box.append(...this.lines);
    element.querySelector("p").append(this.about(data.program));
    [element.hidden, element.open] = [false, true];
  }

  about({ lines, lineOf }) {
    const counts = ["forward", "backward", "update"].map((name) => {
      const count = lines.filter(([section, text]) => section === name && !text.trim().startsWith("#")).length;
      return `${count} ${count === 1 ? "line" : "lines"} ${name}`;
    });
    const marked = lineOf.some((line) => line >= 0) ? " The line of the VJP that runs is marked. A VJP that hands on its gradient as it is has no line; sums have their own." : "";
    return `${counts.join(", ")}.${marked}`;
  }

  // A line, where gradients and the arrays that are there before the step can be told apart.
  line(section, text, remark) {
    const begins = text === `    # ${section}`;
    const [call, freed] = text.split(/(?=; del )/);
    const parts = call.split(/(\b[^\W\d]\w*\b)/).map((part) => {
      if (/^g\d+$/.test(part)) return html("span", { class: "gradient" }, part);
      return this.arrays.has(part) ? html("span", { class: "array" }, part) : part;
    });
    return html("span", { class: `line ${section} ${begins ? "begins" : ""}` }, ...parts,
      freed ? html("span", { class: "freed" }, freed) : "",
      remark ? html("span", { class: "remark" }, `  # ${remark}`) : "");
  }

  // Mark the line that runs in a step of a pass, if there is one.
  mark(step) {
    const now = step.sent.length ? this.lines[this.lineOf[step.sent[0].link]] : undefined;
    for (const line of this.lines) {
      if (line === now) line.setAttribute("aria-current", "step");
      else line.removeAttribute("aria-current");
    }
    if (now) this.box.scrollTop = now.offsetTop - this.box.clientHeight / 2;
  }
}
