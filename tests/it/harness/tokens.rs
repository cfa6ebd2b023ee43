//! A file of devices and their tokens, made by the program itself.

use std::path::Path;

use tempfile::TempDir;

use super::Program;

pub(crate) struct TokensFile {
    folder: TempDir,
    lines: String,
}

impl TokensFile {
    /// A file with these ids and tokens.
    #[track_caller]
    pub(crate) fn new(tokens: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().expect("a directory");
        let mut file = Self { folder, lines: String::new() };
        for (id, token) in tokens {
            file.add(id, token);
        }
        file
    }

    /// Puts a file with one more line in the place of the file.
    #[track_caller]
    pub(crate) fn add(&mut self, id: &str, token: &str) {
        let end = Program::rabbitline_reading(token, &["token", id]).finish();
        assert_eq!(end.code, Some(0), "{end:?}");
        self.lines += &end.stdout;
        let new = self.folder.path().join("new");
        std::fs::write(&new, &self.lines).expect("written");
        std::fs::rename(&new, self.path()).expect("renamed");
    }

    pub(crate) fn path(&self) -> impl AsRef<std::ffi::OsStr> + AsRef<Path> {
        self.folder.path().join("tokens")
    }
}
