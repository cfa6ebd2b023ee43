//! Members of groups that were named by people: in a file, or over HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::command::{ADDRESS_MAX, Address};
use crate::watched::Watched;

/// Memberships there may be in all; at about 100 bytes each.
const MEMBERSHIPS_MAX: usize = 100_000;

/// Groups and their members.
pub(crate) type Members = BTreeMap<Arc<str>, BTreeSet<Address>>;

/// Where memberships are kept.
#[derive(Debug)]
pub(crate) enum Listed {
    /// For as long as the process lives.
    Memory(Mutex<Arc<Members>>),
    File {
        path: PathBuf,
        members: Watched<Members>,
        /// Held while the file is written anew.
        writing: Mutex<()>,
    },
}

impl Default for Listed {
    fn default() -> Self {
        Self::Memory(Mutex::default())
    }
}

impl Listed {
    /// The members in a file: JSON, an object of lists.
    pub(crate) fn open(path: PathBuf) -> Result<Self, String> {
        let members = Watched::new(vec![path.clone()], {
            let path = path.clone();
            move || read(&path)
        })?;
        Ok(Self::File { path, members, writing: Mutex::default() })
    }

    /// All of them now.
    pub(crate) fn get(&self) -> Arc<Members> {
        match self {
            Self::Memory(members) => {
                Arc::clone(&members.lock().unwrap_or_else(PoisonError::into_inner))
            }
            Self::File { members, .. } => members.get(),
        }
    }

    /// Changes them, and the file if there is one; else says why not.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Members)) -> Result<(), String> {
        match self {
            Self::Memory(members) => {
                let mut members = members.lock().unwrap_or_else(PoisonError::into_inner);
                let mut changed = Members::clone(&members);
                change(&mut changed);
                check(&changed)?;
                *members = Arc::new(changed);
                Ok(())
            }
            Self::File { path, members, writing } => {
                let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
                // Not what was read last: somebody may have changed the file since.
                let mut changed = read(path)?;
                change(&mut changed);
                check(&changed)?;
                write(path, &changed)
                    .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                members.get_now();
                Ok(())
            }
        }
    }
}

fn check(members: &Members) -> Result<(), String> {
    let count: usize = members.values().map(BTreeSet::len).sum();
    if count > MEMBERSHIPS_MAX {
        return Err(format!("expected at most {MEMBERSHIPS_MAX} memberships, got {count}"));
    }
    let is_name = |name: &str| (1..=ADDRESS_MAX).contains(&name.len());
    match members.keys().find(|name| !is_name(name)) {
        Some(name) => Err(format!("expected a name of 1 to {ADDRESS_MAX} bytes, got `{name}`")),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Members, String> {
    let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    let raw: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).map_err(|error| {
        wrong(&format!("expected groups as in {{\"pumps\": [\"10.0.0.7\"]}}, got {error}"))
    })?;
    let mut members = Members::new();
    for (name, addresses) in raw {
        let addresses: Result<_, _> =
            addresses.iter().map(|address| Address::parse(address)).collect();
        members.insert(name.into(), addresses.map_err(|reason| wrong(&reason))?);
    }
    check(&members).map_err(|error| wrong(&error))?;
    Ok(members)
}

/// Writes the file anew, whole or not at all.
fn write(path: &Path, members: &Members) -> std::io::Result<()> {
    let shown: BTreeMap<&str, Vec<String>> = members
        .iter()
        .map(|(name, members)| (&**name, members.iter().map(ToString::to_string).collect()))
        .collect();
    let mut text = serde_json::to_vec_pretty(&shown)?;
    text.push(b'\n');
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).expect(text)
    }

    #[test]
    fn a_change_is_in_the_file_and_seen_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("groups.json");
        std::fs::write(&path, r#"{"pumps": ["10.0.0.7", "::ffff:10.0.0.7"]}"#).expect("written");
        let listed = Listed::open(path.clone()).expect("groups");
        assert_eq!(listed.get()["pumps"], BTreeSet::from([address("10.0.0.7")]));
        let join = |members: &mut Members| {
            members.entry("valves".into()).or_default().insert(address("p1"));
        };
        listed.change(join).expect("changed");
        assert_eq!(listed.get()["valves"], BTreeSet::from([address("p1")]));
        let text = std::fs::read_to_string(&path).expect("there");
        let expected = serde_json::json!({"pumps": ["10.0.0.7"], "valves": ["p1"]});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), expected);
    }

    #[test]
    fn what_is_wrong_is_said_and_changes_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let check = |text: &str, expected: &str| {
            std::fs::write(file.path(), text).expect("written");
            let error = Listed::open(file.path().to_owned()).expect_err(text);
            assert!(error.contains(expected), "{error}");
        };
        check("[]", "expected groups as in");
        check(r#"{"pumps": [""]}"#, "address: expected the name of a device");
        check(r#"{"": []}"#, "expected a name of 1 to 200 bytes");
        let listed = Listed::default();
        let name: Arc<str> = "x".repeat(ADDRESS_MAX + 1).into();
        let error = listed.change(|members| drop(members.insert(name, BTreeSet::new())));
        assert!(error.is_err() && listed.get().is_empty());
    }
}
