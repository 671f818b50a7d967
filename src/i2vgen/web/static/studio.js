// What the page does by itself: clicks and files go to the studio, videos are kept in step, light or dark.
(() => {
  "use strict";
  const THEME = "i2vgen-studio-theme";

  function applyTheme() {
    const kept = localStorage.getItem(THEME);
    if (kept) document.body.classList.toggle("dark", kept === "dark");
  }

  // Gradio redraws what is in `element`, so everything is listened for on `element` itself.
  function bind(element, trigger) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-act]");
      if (!button || !element.contains(button) || button.disabled) return;
      if (button.dataset.act === "clear" && !confirm("Forget all videos and photos of this session?")) return;
      trigger("click", { act: button.dataset.act, id: button.dataset.id || "" });
    });
    element.addEventListener("change", (event) => {
      const input = event.target.closest("input[data-upload]");
      if (input && input.files.length) send(input, input.files[0], trigger);
      if (input) input.value = "";
    });
    for (const name of ["dragover", "dragleave", "drop"]) {
      element.addEventListener(name, (event) => {
        const place = event.target.closest("[data-drop]");
        if (!place) return;
        event.preventDefault();
        place.classList.toggle("is-over", name === "dragover");
        const file = name === "drop" && event.dataTransfer.files[0];
        if (file) send(place.querySelector("input"), file, trigger);
      });
    }
    element.studioTrigger = trigger;
  }

  async function send(input, file, trigger) {
    const place = input.closest("[data-drop]");
    const error = place.parentElement.querySelector(".upload-error");
    error.hidden = true;
    place.classList.add("is-busy");
    try {
      const answer = await fetch("studio/upload/" + input.dataset.upload, {
        method: "POST",
        body: file,
        headers: { "content-type": "application/octet-stream", "x-file-name": encodeURIComponent(file.name || "pasted.png") },
      });
      const said = await answer.json();
      if (said.error) throw new Error(said.error);
      trigger("upload", { name: said.name });
    } catch (problem) {
      error.textContent = problem instanceof TypeError ? "The studio does not answer: is it still running?" : problem.message;
      error.hidden = false;
    } finally {
      place.classList.remove("is-busy");
    }
  }

  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((f) => f.type.startsWith("image/"));
    const input = document.querySelector('input[data-upload="photo"]');
    if (!file || !input) return;
    let element = input;
    while (element && !element.studioTrigger) element = element.parentElement;
    if (element) send(input, file, element.studioTrigger);
  });

  document.addEventListener("input", (event) => {
    const compare = event.target.closest(".compare");
    if (compare) compare.style.setProperty("--at", event.target.value + "%");
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.hasAttribute("data-theme-switch")) {
      const isDark = !document.body.classList.contains("dark");
      localStorage.setItem(THEME, isDark ? "dark" : "light");
      applyTheme();
    } else if (button.dataset.choose) {
      document.querySelector(`input[data-upload="${button.dataset.choose}"]`)?.click();
    } else if (button.hasAttribute("data-play")) {
      const videos = button.closest(".card").querySelectorAll(".compare video");
      const isPaused = videos[0].paused;
      videos.forEach((video) => (isPaused ? video.play() : video.pause()));
      button.textContent = isPaused ? "Pause" : "Play";
      button.setAttribute("aria-pressed", String(!isPaused));
    } else if (button.dataset.copy) {
      const text = button.closest("details").querySelector(`[data-text="${button.dataset.copy}"]`).textContent;
      const label = button.textContent;
      button.textContent = (await copy(text)) ? "Copied" : "Could not copy";
      setTimeout(() => (button.textContent = label), 1500);
    }
  });

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Without https, from another machine, browsers have no clipboard but this.
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      const isDone = document.execCommand("copy");
      area.remove();
      return isDone;
    }
  }

  // Before and refined are the same moment at any time.
  setInterval(() => {
    for (const compare of document.querySelectorAll(".compare")) {
      const [after, before] = compare.querySelectorAll("video");
      if (!after.duration || !before.duration) continue;
      if (Math.abs(after.currentTime - before.currentTime) > 0.06) before.currentTime = after.currentTime;
      if (after.paused !== before.paused) after.paused ? before.pause() : before.play();
    }
  }, 120);

  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    new MutationObserver(() => {
      for (const video of document.querySelectorAll("video[autoplay]")) {
        video.removeAttribute("autoplay");
        video.pause();
        if (!video.closest(".compare")) video.addEventListener("mouseenter", () => video.play());
      }
    }).observe(document.documentElement, { childList: true, subtree: true });
  }

  new MutationObserver(applyTheme).observe(document.documentElement, { childList: true, subtree: false });
  document.addEventListener("DOMContentLoaded", applyTheme);
  window.addEventListener("load", () => setTimeout(applyTheme, 50));
  window.studio = { bind };
})();
