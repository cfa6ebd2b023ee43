//! `rabbitline token`: a device's line in the tokens file.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use super::EXIT_USAGE;
use crate::access::tokens;

/// The longest token that is read, in bytes: much longer than a key of any kind, and whatever was
/// piped in by mistake ends here.
const TOKEN_MAX: usize = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The name by which the device says who it is
    id: String,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let stdin = std::io::stdin();
    let typed = stdin.is_terminal();
    if typed {
        eprintln!("token of {}:", args.id);
    }
    let token = read(stdin.lock(), typed);
    match token.and_then(|token| tokens::line(&args.id, &token)) {
        Ok(line) if writeln!(std::io::stdout(), "{line}").is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// The line of `source`, without its ending. Nothing may come after it, unless it is typed: then the
/// end may never come.
fn read(mut source: impl BufRead, typed: bool) -> Result<String, String> {
    let mut bytes = Vec::new();
    let limit = TOKEN_MAX as u64 + "\r\n".len() as u64;
    source.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(|error| error.to_string())?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > TOKEN_MAX {
        return Err(format!("expected a token of at most {TOKEN_MAX} bytes"));
    }
    if !typed && source.fill_buf().is_ok_and(|more| !more.is_empty()) {
        return Err("expected a token of one line, got more".to_owned());
    }
    String::from_utf8(line.to_owned()).map_err(|_| "expected a token in UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line() {
        for text in ["a b", "a b\n", "a b\r\n"] {
            assert_eq!(read(text.as_bytes(), false).as_deref(), Ok("a b"), "{text:?}");
        }
        let longest = "x".repeat(TOKEN_MAX);
        assert_eq!(read(format!("{longest}\r\n").as_bytes(), false).as_ref(), Ok(&longest));
        let too_long = format!("{longest}x");
        for wrong in [&b"a\nb\n"[..], b"a\n\n", b"\xff\n", too_long.as_bytes()] {
            assert!(read(wrong, false).is_err(), "{wrong:?}");
        }
        assert_eq!(read(&b"a\nb"[..], true).as_deref(), Ok("a"), "more may never come");
    }
}
