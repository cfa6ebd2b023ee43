//! What the documents refer to is there: links, and the files that ARCHITECTURE.md says own something.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All documents of the project.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = ["", "docs", "deploy"].map(|name| root().join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && folder != root() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 10, "too few documents: {found:?}");
    found
}

/// A document without its blocks of code.
fn prose(text: &str) -> String {
    text.split("\n```").step_by(2).collect()
}

/// What a heading is called in links to it.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for document in documents() {
        let text = prose(&read(&document));
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (link, _) in targets.filter(|(link, _)| !link.contains("://")) {
            links += 1;
            let from = document.display();
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let beside = document.parent().expect("a folder").join(path);
            let target = if path.is_empty() { document.clone() } else { beside };
            assert!(target.exists(), "{from}: nothing is at {link}");
            let is_there = |target| {
                let text = prose(&read(target));
                text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            assert!(heading.is_empty() || is_there(&target), "{from}: no such heading: {link}");
        }
    }
    assert!(links > 50, "too few links: {links}");
}

/// `a{b,c}.rs` is `ab.rs` and `ac.rs`.
fn expanded(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let mut depth = 1;
    let mut parts = vec![String::new()];
    let mut rest = rest.chars();
    for c in rest.by_ref() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match c {
            _ if depth == 0 => break,
            ',' if depth == 1 => parts.push(String::new()),
            _ => parts.last_mut().expect("one at least").push(c),
        }
    }
    let after = rest.as_str();
    parts.iter().flat_map(|part| expanded(&format!("{before}{part}{after}"))).collect()
}

#[test]
fn every_file_on_the_map_is_there() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let mut files = 0;
    for row in map.lines().filter(|line| line.starts_with("| `")) {
        let names = row.split('|').nth(1).expect("a cell").split('`').skip(1).step_by(2);
        // The first of a row is named in full, the others from where it is.
        let mut folder = PathBuf::new();
        for name in names.filter(|name| !name.contains('*')).flat_map(expanded) {
            if folder.as_os_str().is_empty() {
                folder = Path::new(&name).parent().expect("a folder").to_owned();
            }
            let in_full = root().join(&name);
            let path = if in_full.exists() { in_full } else { root().join(&folder).join(&name) };
            assert!(path.exists(), "ARCHITECTURE.md: there is no {name} in {row}");
            files += 1;
        }
    }
    assert!(files > 150, "too few files: {files}");
}
