//! Holds answers against `/openapi.json`: the part of JSON Schema that it uses, and nothing of it unknown. Stricter in one
//! thing: an object has no fields but those that are described.

use serde_json::Value;

use super::Answer;

/// Words that say something to people only.
const FOR_PEOPLE: [&str; 4] = ["description", "examples", "default", "$comment"];

/// What the bridge says of itself.
pub(crate) struct Api(Value);

impl Api {
    pub(crate) fn new(description: Value) -> Self {
        Self(description)
    }

    /// The answer is one that is described for this method and path; panics with what is not so.
    #[track_caller]
    pub(crate) fn describes(&self, method: &str, path: &str, answer: &Answer) {
        let described = &self.0["paths"][path][method]["responses"][answer.status.to_string()];
        assert!(described.is_object(), "{method} {path}: {} is not described", answer.status);
        let described = self.resolved(described);
        for name in described["headers"].as_object().into_iter().flat_map(|it| it.keys()) {
            assert!(answer.header(name).is_some(), "{method} {path}: no {name} in {answer:?}");
        }
        let kind = answer.header("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default();
        let Some(contents) = described["content"].as_object() else {
            assert!(answer.body.is_empty(), "{method} {path}: {answer:?}");
            return;
        };
        let content = contents.get(kind);
        let content = content.unwrap_or_else(|| panic!("{method} {path}: {kind} is not described"));
        let body = if kind.ends_with("json") { answer.json() } else { answer.body.clone().into() };
        if let Err(wrong) = self.check(&body, &content["schema"], "") {
            panic!("{method} {path}: {wrong}\n{body}");
        }
    }

    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(to) => self.0.pointer(to.trim_start_matches('#')).expect("what is referred to"),
            None => value,
        }
    }

    fn check(&self, value: &Value, schema: &Value, at: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{at}: expected {what}, got {value}"));
        let fields = schema.as_object().expect("a schema is an object");
        for (word, says) in fields {
            let is_so = match word.as_str() {
                "$ref" => {
                    self.check(value, self.resolved(schema), at)?;
                    true
                }
                "type" => says
                    .as_array()
                    .map_or(vec![says], |it| it.iter().collect())
                    .iter()
                    .any(|kind| is(value, kind.as_str().expect("a word"))),
                "enum" => says.as_array().expect("a list").contains(value),
                "const" => says == value,
                "pattern" => {
                    let pattern =
                        regex::Regex::new(says.as_str().expect("text")).expect("a pattern");
                    value.as_str().is_none_or(|text| pattern.is_match(text))
                }
                "minimum" => value.as_f64() >= says.as_f64(),
                "maximum" => value.as_f64() <= says.as_f64(),
                "required" => says.as_array().expect("a list").iter().all(|name| {
                    !value.is_object() || value.get(name.as_str().expect("a name")).is_some()
                }),
                "properties" => {
                    self.check_fields(value, says, at)?;
                    true
                }
                "additionalProperties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        self.check(value, says, &format!("{at}/{name}"))?;
                    }
                    true
                }
                "propertyNames" => {
                    for name in value.as_object().into_iter().flat_map(|it| it.keys()) {
                        self.check(&name.as_str().into(), says, &format!("{at}/{name}"))?;
                    }
                    true
                }
                "items" => {
                    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(value, says, &format!("{at}/{index}"))?;
                    }
                    true
                }
                "oneOf" | "anyOf" => {
                    let each = says.as_array().expect("a list").iter();
                    let checked: Vec<_> = each.map(|it| self.check(value, it, at)).collect();
                    let fitting = checked.iter().filter(|it| it.is_ok()).count();
                    if fitting == 0 {
                        return Err(format!("{at}: none fits: {checked:?}"));
                    }
                    word == "anyOf" || fitting == 1
                }
                for_people if FOR_PEOPLE.contains(&for_people) => true,
                unknown => panic!("{at}: {unknown} is not known here"),
            };
            if !is_so {
                return wrong(&format!("{word} {says}"));
            }
        }
        Ok(())
    }

    fn check_fields(&self, value: &Value, properties: &Value, at: &str) -> Result<(), String> {
        for (name, value) in value.as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            let schema = properties.get(name).ok_or_else(|| format!("{at} is not described"))?;
            self.check(value, schema, &at)?;
        }
        Ok(())
    }
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}
