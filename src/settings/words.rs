//! The settings that are one of a few words.

use super::value::Value;

/// Declares a setting that is one of a few words.
macro_rules! words {
    ( $(#[$doc:meta])* $name:ident, $expected:literal; $( $(#[$vdoc:meta])* $variant:ident = $word:literal ),* $(,)? ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[$vdoc])* $variant, )*
        }

        impl Value for $name {
            fn expected() -> &'static str {
                $expected
            }
            fn read(text: &str) -> Option<Self> {
                match text {
                    $( $word => Some(Self::$variant), )*
                    _ => None,
                }
            }
        }

        impl $name {
            /// The word itself.
            pub fn word(self) -> &'static str {
                match self {
                    $( Self::$variant => $word, )*
                }
            }
        }
    };
}

words! {
    /// On or off.
    Switch, "`on` or `off`";
    /// on
    On = "on",
    /// off
    Off = "off",
}

impl Switch {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

words! {
    /// The type of a queue that the bridge declares.
    QueueType, "`classic` or `quorum`";
    /// One node, fast.
    Classic = "classic",
    /// Replicated, survives the loss of a node.
    Quorum = "quorum",
}

words! {
    /// The wire format of devices.
    Protocol, "`line`, `channel` or `chat`";
    /// Lines of text.
    Line = "line",
    /// JSON objects that end with `##END##`.
    Channel = "channel",
    /// JSON with a binary header.
    Chat = "chat",
}

words! {
    /// What names a device.
    Identity, "`ip`, `peer`, `hello` or `certificate`";
    /// Its IP address.
    Ip = "ip",
    /// Its IP address and port.
    Peer = "peer",
    /// Its first line.
    Hello = "hello",
    /// The certificate of its TLS connection.
    Certificate = "certificate",
}

words! {
    /// What becomes of a second connection of a device.
    Second, "`replace` or `reject`";
    /// It takes the place of the first.
    Replace = "replace",
    /// It is refused.
    Reject = "reject",
}

words! {
    /// What names a device in its certificate.
    CertificateName, "`cn` or `san`";
    /// The common name of its subject.
    Cn = "cn",
    /// Its first DNS name or URI.
    San = "san",
}

words! {
    /// What ends a command line.
    LineEnding, "`crlf` or `lf`";
    /// `\r\n`
    Crlf = "crlf",
    /// `\n`
    Lf = "lf",
}

impl LineEnding {
    /// The bytes themselves.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Self::Crlf => b"\r\n",
            Self::Lf => b"\n",
        }
    }
}

words! {
    /// How much proof makes a command delivered.
    Confirm, "`written`, `received` or `answered`";
    /// The kernel took every byte of the line.
    Written = "written",
    /// The device's TCP stack acknowledged every byte of it.
    Received = "received",
    /// The device sent a line back.
    Answered = "answered",
}

words! {
    /// What becomes of a command whose device is not connected.
    IfOffline, "`reject`, `park` or `drop`";
    /// It goes to the undelivered exchange.
    Reject = "reject",
    /// It waits in the broker until the device connects or its ttl ends.
    Park = "park",
    /// It is forgotten.
    Drop = "drop",
}

impl Confirm {
    /// What `word` asks for, if it is one of the words.
    pub fn from_word(word: &str) -> Option<Self> {
        <Self as Value>::read(word)
    }
}

impl IfOffline {
    /// What `word` asks for, if it is one of the words.
    pub fn from_word(word: &str) -> Option<Self> {
        <Self as Value>::read(word)
    }
}

words! {
    /// How log lines look.
    LogFormat, "`text` or `json`";
    /// For people.
    Text = "text",
    /// For machines.
    Json = "json",
}
