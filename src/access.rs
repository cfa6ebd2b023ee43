//! Who may connect: everything that is asked of a connection before it is a device's session.
//!
//! How many may come in, from where and how often (`gate`); where a connection comes from that a
//! proxy hands on (`proxy`); who a device says it is in its first line (`hello`) and whether that is
//! true, by a token (`tokens`) or by a certificate (`tls`). Nothing here owns a socket: bytes and
//! addresses come in, a verdict goes out, so that a listener can ask in the order that suits it.

pub(crate) mod gate;
pub(crate) mod hello;
pub(crate) mod proxy;
pub(crate) mod tls;
pub(crate) mod tokens;
