"use strict";
// Answers of one sheet: kept in this browser while the page is open again, saved as a file. Nothing leaves the page.
(function () {
  const form = document.forms[0];
  const place = "uimjax-study-" + form.dataset.study + "-" + form.dataset.rater;
  const rows = Array.from(form.querySelectorAll("fieldset[data-token]"));
  const told = document.getElementById("told");
  const held = () => { try { return localStorage; } catch (error) { return null; } };

  function read() {
    const answers = {}, comments = {};
    for (const row of rows) {
      const chosen = row.querySelector("input[type=radio]:checked");
      const note = row.querySelector("input[type=text]").value.trim();
      if (chosen) answers[row.dataset.token] = chosen.value;
      if (note) comments[row.dataset.token] = note;
    }
    const group = form.elements.group ? form.elements.group.value : "";
    return { study: form.dataset.study, rater: form.dataset.rater, group, consent: form.elements.consent.checked, answers, comments };
  }

  function fill(saved) {
    for (const row of rows) {
      for (const choice of row.querySelectorAll("input[type=radio]")) {
        choice.checked = saved.answers && saved.answers[row.dataset.token] === choice.value;
      }
      row.querySelector("input[type=text]").value = (saved.comments || {})[row.dataset.token] || "";
    }
    if (form.elements.group) form.elements.group.value = saved.group || "";
    form.elements.consent.checked = Boolean(saved.consent);
  }

  function tell() {
    const done = Object.keys(read().answers).length;
    told.textContent = done + " of " + rows.length + " answered";
    const open = rows.find((row) => !row.querySelector("input[type=radio]:checked"));
    for (const row of rows) row.classList.toggle("open", row === open);
  }

  form.addEventListener("change", function () {
    const store = held();
    if (store) try { store.setItem(place, JSON.stringify(read())); } catch (error) { /* full or forbidden: the file counts */ }
    tell();
  });
  document.getElementById("save").addEventListener("click", function () {
    const answers = read();
    if (!answers.consent) { told.textContent = "Please read the text at the top and agree to it first."; return; }
    const file = document.createElement("a");
    file.href = URL.createObjectURL(new Blob([JSON.stringify(answers, null, 1)], { type: "application/json" }));
    file.download = form.dataset.rater + ".json";
    file.click();
    const open = rows.length - Object.keys(answers.answers).length;
    told.textContent = "Saved as " + file.download + (open ? "; " + open + " rows have no answer yet." : ". Thank you.");
  });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  const store = held();
  const saved = store && store.getItem(place);
  if (saved) try { fill(JSON.parse(saved)); } catch (error) { /* of another version: begin anew */ }
  tell();
})();
