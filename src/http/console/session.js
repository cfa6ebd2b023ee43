// Who looks: the token, where it is kept, and the form that asks for it.

import { ask } from "./api.js";
import { byId, say } from "./dom.js";

const KEY = "rabbitline.token";

/** Kept for this tab only, and never in an address. */
export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What the bridge lets us do. */
export const session = { role: undefined, needsToken: false };

export const mayAct = () => session.role === "operator";

/** Asks the bridge who we are, and people for a token for as long as that takes. */
export async function enter() {
  for (let problem = ""; ; ) {
    try {
      const { role, needs_token: needsToken } = await ask("/session");
      Object.assign(session, { role, needsToken });
      shown(false);
      return;
    } catch (error) {
      if (error.status !== 401 && error.status !== 429) throw error;
      problem = sentence(error);
      token.forget();
    }
    shown(true, problem);
    token.set(await submitted());
  }
}

function sentence({ status, message, retryAfter }) {
  if (status === 429) return `Too many wrong tokens came from here. Try again in ${retryAfter ?? "some"} s.`;
  if (token.get()) return "The bridge does not know this token.";
  // Said by itself when nobody has tried one: it tells apart a missing token and a bridge that can have none.
  return message.includes("is not set") ? `${message[0].toUpperCase()}${message.slice(1)}.` : "";
}

function submitted() {
  return new Promise((resolve) => {
    byId("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const field = byId("token");
      const value = field.value.trim();
      field.value = "";
      resolve(value);
    }, { once: true });
  });
}

function shown(isAsking, problem = "") {
  byId("sign-in").hidden = !isAsking;
  byId("view").hidden = isAsking;
  byId("views").hidden = isAsking;
  byId("sign-out").hidden = isAsking || !session.needsToken;
  byId("role").hidden = isAsking || !session.needsToken;
  say(byId("role"), session.role === "reader" ? "reader: looks, cannot act" : "operator");
  say(byId("sign-in-problem"), problem);
  if (isAsking) byId("token").focus();
}

byId("sign-out").addEventListener("click", () => {
  token.forget();
  location.reload();
});
