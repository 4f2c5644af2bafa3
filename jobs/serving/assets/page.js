"use strict";
// An image tried: made into what the model takes, asked, and asked again under noise. What is drawn is what is sent.
(() => {
  const main = document.querySelector("main");
  const facts = JSON.parse(main.dataset.facts);
  const at = (id) => document.getElementById(id);
  if (!at("drop")) return; // a package whose images a browser cannot draw
  const [channels, height, width] = facts.image;
  const size = channels * height * width;
  const MOST_FILE_BYTES = 64 * 2 ** 20;
  const SEED = 1; // so that the same image meets the same noise again, until other noise is asked for
  let asking = null; // what ends the questions about the image before
  let current = null; // the image that is shown, as bytes in the order (channels, height, width)
  let kept = null; // its answer
  let seed = SEED;

  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  // Grey as Pillow has it: the library that reads images where the model is made and served.
  const grey = (r, g, b) => (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;

  const planes = (rgba) => {
    const bytes = new Uint8Array(size), plane = height * width;
    for (let i = 0; i < plane; i++) {
      const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
      if (channels === 1) bytes[i] = grey(r, g, b);
      else [bytes[i], bytes[plane + i], bytes[2 * plane + i]] = [r, g, b];
    }
    return bytes;
  };

  const draw = (bytes, canvas) => {
    const plane = height * width, data = new ImageData(width, height);
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < 3; c++) data.data[4 * i + c] = bytes[channels === 1 ? i : c * plane + i];
      data.data[4 * i + 3] = 255;
    }
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(data, 0, 0);
  };

  // The part of a picture that becomes the image: as the data set's pictures were read where its card says how,
  // otherwise the largest part in the middle that has the image's proportions.
  const part = (w, h) => {
    const { size: to, crop } = facts.reading;
    if (Array.isArray(to) && !crop) return [0, 0, w, h];
    const zoom = Math.min(w / width, h / height) * (crop && typeof to === "number" ? crop / to : 1);
    const [pw, ph] = [Math.max(1, Math.round(width * zoom)), Math.max(1, Math.round(height * zoom))];
    return [Math.floor((w - pw) / 2), Math.floor((h - ph) / 2), pw, ph];
  };

  // A picture as an image for the model, and what was done to it, in words.
  const fitted = async (picture) => {
    const said = [], same = picture.width === width && picture.height === height;
    let found = picture;
    if (!same) {
      const [x, y, w, h] = part(picture.width, picture.height);
      found = await createImageBitmap(picture, x, y, w, h, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
      const cut = w === picture.width && h === picture.height ? "" : `cut to ${w}x${h} in the middle and `;
      said.push(`Your image has ${picture.width}x${picture.height} pixels: it was ${cut}resized to ${width}x${height} by the browser, which is another image`);
    }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(found, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    if (data.some((value, i) => i % 4 === 3 && value < 255)) {
      for (let i = 0; i < data.length; i += 4)
        for (let c = 0; c < 3; c++) data[i + c] = Math.round((data[i + c] * data[i + 3] + 255 * (255 - data[i + 3])) / 255);
      said.push("What is transparent was made white");
    }
    if (channels === 1 && data.some((value, i) => i % 4 < 2 && value !== data[i + 1])) said.push("Its colours became grey");
    return { bytes: planes(data), said, same };
  };

  // NumPy's own format, version 1: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
  const npy = (images) => {
    const words = `{'descr': '|u1', 'fortran_order': False, 'shape': (${images.length / size}, ${channels}, ${height}, ${width}), }`;
    const header = `${words.padEnd(64 * Math.ceil((words.length + 11) / 64) - 11)}\n`;
    const found = new Uint8Array(10 + header.length + images.length);
    found.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length % 256, header.length >> 8]);
    for (let i = 0; i < header.length; i++) found[10 + i] = header.charCodeAt(i);
    found.set(images, 10 + header.length);
    return found;
  };

  const ask = async (images, signal) => {
    let answer;
    try {
      answer = await fetch("predict", { method: "POST", headers: { "Content-Type": facts.npy }, body: npy(images), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("no answer from the server: is it still running?");
    }
    const text = await answer.text();
    if (answer.ok) return JSON.parse(text);
    let line = text.trim();
    try { line = JSON.parse(text).error || line; } catch { /* then it is a line already */ }
    throw new Error(`the server answers ${answer.status}: ${line.slice(0, 400)}`);
  };

  const fail = (error) => {
    if (error.name === "AbortError") return;
    at("error").textContent = error.message;
    at("error").hidden = false;
    at("waiting").hidden = true;
    if (!kept) at("noise-said").textContent = "There is no answer to compare with.";
    else at("noise-said").textContent = "The copies were not all asked.";
  };

  // Shares to draw as bars: votes as they are, logits through a softmax.
  const shares = (answer) => {
    if (answer.kind !== "logits") {
      const all = answer.scores.reduce((sum, value) => sum + value, 0);
      return answer.scores.map((value) => (all ? value / all : 0));
    }
    const most = Math.max(...answer.scores), powers = answer.scores.map((value) => Math.exp(value - most));
    const all = powers.reduce((sum, value) => sum + value, 0);
    return powers.map((value) => value / all);
  };

  const bar = (...parts) => {
    const track = make("span", undefined, "track");
    track.setAttribute("aria-hidden", "true");
    for (const [share, name] of parts) {
      const fill = make("span", undefined, `fill ${name || ""}`);
      fill.style.width = `${100 * share}%`;
      track.append(fill);
    }
    return track;
  };

  const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
  const called = (label) => (label < 0 ? "no class" : facts.classes[label]);
  const small = (value) => Number(value.toPrecision(3)).toString();
  const listed = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`);

  const certificateTexts = (answer) => {
    const given = answer.certificate;
    if (!given) return ["", ["Nothing is certified: this server gives the program's class as it is. With --sigma it certifies."]];
    const asked = `${given.votes.toLocaleString("en")} noisy copies (sigma ${given.sigma}) voted; all that is said here is wrong with a chance of at most ${given.alpha}.`;
    if (answer.label < 0) return ["abstained", ["The server abstains: no class is certain.", asked]];
    const radii = Object.entries(given.holds).map(([radius, holds]) => [Number(radius), holds]).sort((a, b) => a[0] - b[0]);
    const held = radii.filter(([, holds]) => holds).map(([radius]) => radius);
    const open = radii.filter(([, holds]) => !holds).map(([radius]) => radius);
    const texts = [];
    if (held.length) {
      const most = held[held.length - 1];
      texts.push(`Certified: no change of this image within an L2 distance of ${most} gives another class. Spread evenly, that is ${small((255 * most) / Math.sqrt(size))} of 255 grey levels in every value.`);
    }
    if (open.length) texts.push(`Not certified within ${listed(open.map(String))}: there another class may be found, or not.`);
    return [held.length ? "holds" : "", [...texts, asked]];
  };

  // A signal with how often it is raised for nothing, where the card says that.
  const flagging = (name) => (name in facts.flagged ? `${name} (as of ${percent(facts.flagged[name])} of clean images)` : name);

  const show = (answer) => {
    const by = shares(answer);
    const order = by.map((_, label) => label).sort((a, b) => by[b] - by[a] || a - b).slice(0, 5);
    at("class").textContent = answer.label < 0 ? "No class: the server abstains" : called(answer.label);
    const [state, texts] = certificateTexts(answer);
    at("certificate").className = `box ${state}`;
    at("certificate").replaceChildren(...texts.map((text) => make("p", text)));
    at("scores").replaceChildren(...order.flatMap((label) => {
      const name = make("span", called(label), label === answer.label ? "name first" : "name");
      name.title = called(label);
      return [name, bar([by[label]]), make("span", percent(by[label]), "n")];
    }));
    const more = facts.classes.length > order.length ? `The first ${order.length} of ${facts.classes.length} classes. ` : "";
    at("scores-note").textContent = more + (answer.kind === "logits" ? "Softmax of the logits: a score, no probability." : "Shares of the noisy copies' votes.");
    at("signals").textContent = answer.signals === null
      ? "Nothing watches requests here."
      : answer.signals.length ? `Signals raised: ${listed(answer.signals.map(flagging))}. They are monitoring, no defence.` : "No signal was raised.";
    at("request").textContent = answer.request;
    at("waiting").hidden = true;
    at("answered").hidden = false;
  };

  // Answers of the server, one for each image; no class is -1.
  const answersIn = (found) => found.answers.map((one) => ({ ...one, label: one.label ?? -1, request: found.request }));

  // Standard normal numbers: mulberry32 through Box and Muller's transform.
  const normals = (start) => {
    let state = start >>> 0, spare = null;
    const uniform = () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
    return () => {
      if (spare !== null) {
        const found = spare;
        spare = null;
        return found;
      }
      const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
      spare = radius * Math.sin(angle);
      return radius * Math.cos(angle);
    };
  };

  const noisy = (bytes, sigma, copies, start) => {
    const found = new Uint8Array(copies * size), normal = normals(start);
    for (let i = 0; i < found.length; i++) found[i] = Math.max(0, Math.min(255, Math.round(bytes[i % size] + 255 * sigma * normal())));
    return found;
  };

  const noiseFigure = (sigma, images, answers, label) => {
    const counts = new Map();
    for (const answer of answers) counts.set(answer.label, (counts.get(answer.label) || 0) + 1);
    const same = counts.get(label) || 0, none = label < 0 ? 0 : counts.get(-1) || 0, n = answers.length;
    const others = [...counts].filter(([other]) => other !== label && other >= 0).sort((a, b) => b[1] - a[1]);
    const figure = make("figure"), canvas = make("canvas");
    draw(images.subarray(0, size), canvas);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `A copy with noise of sigma ${sigma}: ${called(answers[0].label)}`);
    const caption = make("figcaption");
    caption.append(make("p", `sigma ${sigma}`, "first"), make("p", `${same} of ${n} ${label < 0 ? "abstain again" : `stay ${called(label)}`}`));
    for (const [other, count] of others.slice(0, 2)) caption.append(make("p", `${count} become ${called(other)}`, "quiet"));
    if (others.length > 2) caption.append(make("p", `${others.slice(2).reduce((sum, one) => sum + one[1], 0)} become others`, "quiet"));
    if (none) caption.append(make("p", `${none} abstain`, "quiet"));
    const raised = [...new Set(answers.flatMap((answer) => answer.signals || []))];
    if (raised.length) caption.append(make("p", `signals: ${raised.join(", ")}`, "quiet"));
    figure.append(canvas, bar([same / n], [(n - same - none) / n, "other"], [none / n, "none"]), caption);
    return [figure, same / n];
  };

  const summary = (label, found) => {
    const what = label < 0 ? "the abstention" : `the class ${called(label)}`;
    const whole = found.filter(([, share], i) => found.slice(0, i + 1).every((one) => one[1] === 1)).map(([sigma]) => sigma);
    const lost = found.find(([, share]) => share < 0.5);
    const first = whole.length ? `All copies keep ${what} up to sigma ${whole[whole.length - 1]}` : `Some copies lose ${what} at sigma ${found[0][0]} already`;
    const last = lost ? `; from sigma ${lost[0]} on fewer than half keep it.` : "; at least half keep it at every sigma tried.";
    return first + (whole.length === found.length ? "." : last);
  };

  const tryNoise = async (bytes, label, signal) => {
    at("noise-strip").replaceChildren();
    at("again").hidden = true;
    const found = [];
    for (const [i, sigma] of facts.sigmas.entries()) {
      at("noise-said").textContent = `Asking about copies with noise of sigma ${sigma} …`;
      const images = noisy(bytes, sigma, facts.copies, 1000 * seed + i);
      const answers = answersIn(await ask(images, signal));
      const [figure, share] = noiseFigure(sigma, images, answers, label);
      at("noise-strip").append(figure);
      found.push([sigma, share]);
    }
    at("noise-said").textContent = summary(label, found);
    at("again").hidden = false;
  };

  const begin = () => {
    asking?.abort();
    asking = new AbortController();
    at("error").hidden = true;
    return asking.signal;
  };

  const judge = async (bytes, signal) => {
    kept = null;
    at("answered").hidden = true;
    at("waiting").hidden = false;
    at("waiting").textContent = "Asking …";
    at("noise-strip").replaceChildren();
    at("noise-said").textContent = "";
    at("again").hidden = true;
    const [answer] = answersIn(await ask(bytes, signal));
    kept = answer;
    show(answer);
    await tryNoise(bytes, answer.label, signal);
  };

  // What is asked: a file's picture or a golden image. words: what it is.
  const take = async (open, words) => {
    const signal = begin();
    try {
      const picture = await open();
      const { bytes, said, same } = await fitted(picture);
      if (signal.aborted) return;
      at("source-figure").hidden = same;
      if (!same) {
        const scale = Math.min(1, 320 / Math.max(picture.width, picture.height)), source = at("source");
        [source.width, source.height] = [Math.max(1, Math.round(picture.width * scale)), Math.max(1, Math.round(picture.height * scale))];
        source.getContext("2d").drawImage(picture, 0, 0, source.width, source.height);
      }
      draw(bytes, at("picture"));
      at("gets").textContent = "what the model gets";
      at("picture").setAttribute("aria-label", words);
      at("note").textContent = [words, ...said].join(". ").replace(/([^.])$/, "$1.");
      [current, seed] = [bytes, SEED];
      await judge(bytes, signal);
    } catch (error) { fail(error); }
  };

  const takeFile = (file) => {
    document.querySelectorAll("#golden input:checked").forEach((input) => { input.checked = false; });
    return take(async () => {
      if (!file) throw new Error("expected an image file, got none: drop a file, not a link");
      if (file.size > MOST_FILE_BYTES) throw new Error(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB: expected at most ${MOST_FILE_BYTES / 2 ** 20}`);
      try {
        return await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
      } catch { throw new Error(`${file.name} is no image that this browser reads: expected PNG, JPEG, WebP or GIF`); }
    }, file ? `Your file ${file.name}` : "");
  };

  at("file").addEventListener("change", (event) => {
    if (event.target.files.length) takeFile(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    takeFile(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) takeFile(event.clipboardData.files[0]);
  });
  at("golden")?.addEventListener("change", (event) => {
    const { value, dataset } = event.target, image = event.target.nextElementSibling;
    take(async () => {
      await image.decode();
      return createImageBitmap(image, { colorSpaceConversion: "none" });
    }, `Golden image ${value}, labelled ${dataset.label}`);
  });
  at("again").addEventListener("click", async () => {
    seed += 1;
    try { await tryNoise(current, kept.label, begin()); } catch (error) { fail(error); }
  });
})();
