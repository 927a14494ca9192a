/** The outcomes of a comparison, and the words in which two answers differ. */

import { faultOf, preview } from "../batch/answer.js";
import { texts } from "../batch/texts.js";

const WORDS_MAX = 600;

/** The outcomes of the API, with their words. */
export const OUTCOMES = {
  different: "Different",
  first_failed: "Failed on the left only",
  second_failed: "Failed on the right only",
  both_failed: "Failed in both",
  same: "Same",
  only_first: "Only on the left",
  only_second: "Only on the right",
};

const BOTH = ["different", "first_failed", "second_failed", "both_failed", "same"];

/** The page's filters: the label of each, and the outcomes that match. */
export const SHOWN = {
  all: ["All lines", []],
  different: ["Answers that differ", ["different"]],
  one_failed: ["Failed on one side", ["first_failed", "second_failed"]],
  first_failed: ["Failed on the left only", ["first_failed"]],
  second_failed: ["Failed on the right only", ["second_failed"]],
  both_failed: ["Failed in both", ["both_failed"]],
  same: ["Same", ["same"]],
  both: ["In both batches", BOTH],
  missing: ["Only in one", ["only_first", "only_second"]],
};

/** An answer as text, or the words of its fault. */
export const answerOf = ({ result }) => {
  const body = result.response?.body;
  const made = texts(body);
  return faultOf(result) ?? (made.length ? made.join("\n") : JSON.stringify(body?.data ?? body ?? null));
};

export const shown = (line) => (line ? preview(line.result) : "–");

/** Words with the spaces behind them. */
const wordsOf = (text) => text.match(/\S+\s*|\s+/g) ?? [];

/**
 * The words of two texts, each marked if the other does not have it there (longest common subsequence). Long texts
 * are not marked.
 * @returns {[{text: string, isOwn: boolean}[], {text: string, isOwn: boolean}[]]}
 */
export function differences(one, other) {
  const [left, right] = [wordsOf(one), wordsOf(other)];
  if (left.length > WORDS_MAX || right.length > WORDS_MAX)
    return [[{ text: one, isOwn: false }], [{ text: other, isOwn: false }]];
  const lengths = Array.from({ length: left.length + 1 }, () => new Uint16Array(right.length + 1));
  for (let a = left.length - 1; a >= 0; a -= 1)
    for (let b = right.length - 1; b >= 0; b -= 1)
      lengths[a][b] = left[a] === right[b] ? lengths[a + 1][b + 1] + 1 : Math.max(lengths[a + 1][b], lengths[a][b + 1]);
  const found = [[], []];
  let [a, b] = [0, 0];
  while (a < left.length || b < right.length) {
    const isCommon = a < left.length && b < right.length && left[a] === right[b];
    const fromLeft = !isCommon && (b >= right.length || (a < left.length && lengths[a + 1][b] >= lengths[a][b + 1]));
    if (isCommon || fromLeft) found[0].push({ text: left[a++], isOwn: !isCommon });
    if (isCommon || !fromLeft) found[1].push({ text: right[b++], isOwn: !isCommon });
  }
  return found;
}
