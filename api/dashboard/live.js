/** Looks again and again, for as long as somebody looks at the page. */

const SECONDS = 2;
const SECONDS_MAX = 30;

/**
 * Call `look` now and then every two seconds, each time after the last one has ended; not while the tab is hidden, and
 * less often while it fails.
 * @param {AbortSignal} signal Ends it.
 * @param {() => Promise<boolean>} look Says whether there is more to come.
 * @param {(error: Error | null) => void} told Told what failed, and null once it does not any more.
 */
export async function live(signal, look, told) {
  let wait = SECONDS;
  while (!signal.aborted) {
    if (document.visibilityState === "visible") {
      try {
        const more = await look();
        told(null);
        wait = SECONDS;
        if (!more) return;
      } catch (error) {
        if (signal.aborted) return;
        told(error);
        wait = Math.min(2 * wait, SECONDS_MAX);
      }
    }
    await pause(signal, wait);
  }
}

function pause(signal, seconds) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const seen = () => document.visibilityState === "visible" && done();
    const timer = setTimeout(done, seconds * 1000);
    document.addEventListener("visibilitychange", seen);
    signal.addEventListener("abort", done);
  });
}
