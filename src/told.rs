//! What is told of commands: that one was taken up, and what became of it.

use serde::Serialize;

use crate::clock;
use crate::command::{Outcome, Reason};
use crate::live::Mask;
use crate::order::{Facts, Origin};
use crate::run::Run;
use crate::uplink::text_or_base64;

/// What became of a command.
pub(crate) struct End<'a> {
    pub(crate) outcome: Outcome,
    pub(crate) reason: &'a Reason,
    pub(crate) answer: Option<&'a [u8]>,
    /// When it was known.
    pub(crate) at_ms: u64,
}

#[derive(Serialize)]
struct Taken<'a> {
    id: &'a str,
    address: String,
    cmd: &'a str,
    confirm: &'static str,
    bridge: &'a str,
    run: &'a str,
    number: u64,
    taken: String,
}

#[derive(Serialize)]
struct Ended<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm: Option<&'static str>,
    bridge: &'a str,
    run: &'a str,
    number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<String>,
    taken: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
}

/// That a command was taken up, for those who look on.
pub(crate) fn command(run: &Run, id: &str, facts: &Facts, mask: &Mask) -> Vec<u8> {
    let Facts { command, origin, .. } = facts;
    let taken = Taken {
        id,
        address: command.address.to_string(),
        cmd: &mask.over_text(command.spoken.payload().content.text()),
        confirm: command.confirm.word(),
        bridge: &run.bridge,
        run: &run.name,
        number: origin.told_as,
        taken: clock::rfc3339(origin.arrived.wall_ms),
    };
    // Strings and a number: this cannot fail.
    serde_json::to_vec(&taken).unwrap_or_default()
}

/// What became of a message; `facts` if it was a command, `mask` if it is for those who look on.
pub(crate) fn outcome(
    run: &Run,
    id: &str,
    address: Option<&str>,
    origin: &Origin,
    facts: Option<&Facts>,
    end: &End<'_>,
    mask: Option<&Mask>,
) -> Vec<u8> {
    let text = |text| mask.map_or(std::borrow::Cow::Borrowed(text), |mask| mask.over_text(text));
    let reason = (!end.outcome.is_delivered()).then(|| text(end.reason));
    let cmd = facts.map(|facts| text(facts.command.spoken.payload().content.text()));
    let answer = end.answer.map(|answer| mask.map_or(answer.into(), |mask| mask.over(answer)));
    let (answer, answer_base64) = answer.as_deref().map(text_or_base64).unwrap_or_default();
    let written = facts.map(|facts| facts.steps.written()).filter(|at| *at > 0);
    let ended = Ended {
        id,
        address,
        outcome: end.outcome.label(),
        reason: reason.as_deref(),
        answer,
        answer_base64,
        cmd: cmd.as_deref(),
        confirm: facts.map(|facts| facts.command.confirm.word()),
        bridge: &run.bridge,
        run: &run.name,
        number: origin.told_as,
        published: origin.published_ms.map(clock::rfc3339),
        taken: clock::rfc3339(origin.arrived.wall_ms),
        written: written.map(clock::rfc3339),
        at: clock::rfc3339(end.at_ms),
        trace: origin.message.trace(),
    };
    // Strings and a number: this cannot fail.
    serde_json::to_vec(&ended).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::order::tests::facts;

    fn of(facts: &Facts, end: &End<'_>, mask: Option<&Mask>) -> Value {
        let (run, is_command) = (Run::of_a_test(), Some(facts));
        let address = facts.command.address.to_string();
        let told = outcome(&run, "i7", Some(&address), &facts.origin, is_command, end, mask);
        serde_json::from_slice(&told).expect("JSON")
    }

    #[test]
    fn what_became_of_a_command_is_told_whole_and_masked_only_for_those_who_look_on() {
        let facts = facts(None, "SET PASSWORD x");
        let taken = clock::rfc3339(facts.origin.arrived.wall_ms);
        let nothing = "".into();
        let answer = Some(&b"token=\xff"[..]);
        let end = End { outcome: Outcome::Answered, reason: &nothing, answer, at_ms: 0 };
        let mut expected = json!({
            "id": "i7", "address": "127.0.0.2", "outcome": "answered", "answer_base64": "dG9rZW49/w==",
            "cmd": "SET PASSWORD x", "confirm": "written", "bridge": "b1", "run": "r1", "number": 1,
            "taken": taken, "at": "1970-01-01T00:00:00.000Z",
        });
        assert_eq!(of(&facts, &end, None), expected);
        expected["cmd"] = "SET PASSWORD ***".into();
        expected["answer"] = "token=***".into();
        expected.as_object_mut().expect("an object").remove("answer_base64");
        assert_eq!(of(&facts, &end, Some(&Mask::new(None))), expected);
    }

    #[test]
    fn a_command_that_was_not_delivered_has_a_reason_and_when_it_was_written() {
        let facts = facts(None, "ON");
        facts.steps.written_ms.store(1, std::sync::atomic::Ordering::Relaxed);
        let gone = "the link broke".into();
        let end = End { outcome: Outcome::Uncertain, reason: &gone, answer: None, at_ms: 2 };
        let told = of(&facts, &end, None);
        assert_eq!(
            (&told["reason"], &told["outcome"]),
            (&json!("the link broke"), &json!("uncertain"))
        );
        assert_eq!(told["written"], "1970-01-01T00:00:00.001Z");
        let invalid = outcome(&Run::of_a_test(), "i7", None, &facts.origin, None, &end, None);
        let invalid: Value = serde_json::from_slice(&invalid).expect("JSON");
        assert!(
            ["address", "cmd", "confirm", "written"]
                .iter()
                .all(|field| invalid.get(field).is_none())
        );
    }

    #[test]
    fn a_command_taken_up_is_told_masked() {
        let facts = facts(None, "LOGIN token=abc");
        let told = command(&Run::of_a_test(), "i7", &facts, &Mask::new(None));
        let told: Value = serde_json::from_slice(&told).expect("JSON");
        let expected = json!({
            "id": "i7", "address": "127.0.0.2", "cmd": "LOGIN token=***", "confirm": "written",
            "bridge": "b1", "run": "r1", "number": 1,
            "taken": clock::rfc3339(facts.origin.arrived.wall_ms),
        });
        assert_eq!(told, expected);
    }
}
