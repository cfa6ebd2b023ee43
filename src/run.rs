//! `Run`: which run of which bridge it is that says something.
//!
//! A bridge that is started again knows nothing of what it has said before: its numbers begin anew. Whoever
//! follows it tells one run from the next by the name that is made here, the same in all that is said.

use std::sync::Arc;

use crate::clock::Moment;

/// One run of a bridge. A clone is the same one.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The bridge's name.
    pub(crate) bridge: Arc<str>,
    /// When this process began, in milliseconds since 1970, as hex.
    pub(crate) name: Arc<str>,
}

impl Run {
    /// The run that begins now.
    pub(crate) fn begin(bridge: Arc<str>) -> Self {
        Self { bridge, name: format!("{:x}", Moment::now().wall_ms).into() }
    }
}

#[cfg(test)]
impl Run {
    /// Run `r1` of bridge `b1`.
    pub(crate) fn of_a_test() -> Self {
        Self { bridge: "b1".into(), name: "r1".into() }
    }
}
