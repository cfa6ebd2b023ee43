//! What the kernel knows of a device's acknowledgements. The only file with `unsafe`.
//!
//! Linux can say when the peer's TCP stack has acknowledged a byte: a send that is *marked* puts an
//! event on the socket's error queue once its last byte is acknowledged (`SO_TIMESTAMPING` with
//! `TX_ACK` and `OPT_ID`, Documentation/networking/timestamping.rst). And it can be asked how much
//! of what was written is not acknowledged (`SIOCOUTQ`), also after the connection has failed. An
//! acknowledgement proves that the bytes are in the peer's kernel: not that a program has read them,
//! and behind a TCP proxy only that the proxy has them.

use std::io;

#[cfg(target_os = "linux")]
pub(super) use linux::{prepare, send_marked, take_event, unacknowledged};
#[cfg(not(target_os = "linux"))]
pub(super) use other::{prepare, send_marked, take_event, unacknowledged};

/// Whether this system can say what a peer has acknowledged; else why not.
pub fn supported() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&address.into())?;
    socket.listen(1)?;
    let listening = socket.local_addr()?;
    let near = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    near.connect(&listening)?;
    enable(&near)
}

#[cfg(target_os = "linux")]
use linux::enable;
#[cfg(not(target_os = "linux"))]
use other::enable;

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no library offers these calls; each block says why it is sound")]
mod linux {
    use std::io;
    use std::mem;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

    use tokio::io::Interest;
    use tokio::net::TcpStream;

    /// Bytes for the control messages of one event: two of them, with room to spare.
    const CONTROL_BYTES: usize = 256;

    /// A buffer for control messages, aligned as their headers must be.
    #[repr(C, align(8))]
    struct Control([u8; CONTROL_BYTES]);

    /// Makes the socket tell of marked sends, by the offset of their last byte. Offsets count from
    /// here, so this comes before anything is written.
    pub(in crate::device) fn prepare(stream: &TcpStream) -> io::Result<()> {
        enable(stream)
    }

    pub(super) fn enable(socket: &impl AsFd) -> io::Result<()> {
        let flags: libc::c_uint = libc::SOF_TIMESTAMPING_SOFTWARE
            | libc::SOF_TIMESTAMPING_OPT_ID
            | libc::SOF_TIMESTAMPING_OPT_TSONLY;
        // Before Linux 6.3 without OPT_ID_TCP: the same on a connection that has sent nothing.
        set_timestamping(socket.as_fd(), flags | libc::SOF_TIMESTAMPING_OPT_ID_TCP)
            .or_else(|_| set_timestamping(socket.as_fd(), flags))
    }

    fn set_timestamping(socket: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
        let size = size_of_val(&flags) as libc::socklen_t;
        // SAFETY: the descriptor is open while it is borrowed, and the pointer and size describe
        // `flags`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TIMESTAMPING,
                (&raw const flags).cast(),
                size,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Writes as `try_write` does, and marks the last byte it takes.
    pub(in crate::device) fn send_marked(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        stream.try_io(Interest::WRITABLE, || {
            let mark: u32 = libc::SOF_TIMESTAMPING_TX_ACK;
            let mut control = Control([0; CONTROL_BYTES]);
            let mut data =
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            // SAFETY: all zeroes is a valid `msghdr`. The control buffer is aligned for `cmsghdr` and
            // larger than CMSG_SPACE of one u32, so CMSG_FIRSTHDR and CMSG_DATA point into it. The
            // kernel only reads `data`, which lives, as everything else here, until the call returns.
            let sent = unsafe {
                let mut message: libc::msghdr = mem::zeroed();
                message.msg_iov = &raw mut data;
                message.msg_iovlen = 1;
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(size_of::<u32>() as u32) as _;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SO_TIMESTAMPING;
                (*header).cmsg_len = libc::CMSG_LEN(size_of::<u32>() as u32) as _;
                libc::CMSG_DATA(header).cast::<u32>().write_unaligned(mark);
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                libc::sendmsg(stream.as_raw_fd(), &raw const message, flags)
            };
            usize::try_from(sent).map_err(|_| io::Error::last_os_error())
        })
    }

    /// Takes one event off the error queue: the stream offset up to which the peer has acknowledged,
    /// as far as 32 bits tell it, or None if the event says nothing of the kind. `WouldBlock` when
    /// the queue is empty.
    pub(in crate::device) fn take_event(stream: &TcpStream) -> io::Result<Option<u32>> {
        stream.try_io(Interest::ERROR, || {
            let mut control = Control([0; CONTROL_BYTES]);
            // SAFETY: all zeroes is a valid `msghdr`; the control buffer is aligned, its length is
            // given, and it lives until it has been read. CMSG_FIRSTHDR and CMSG_NXTHDR stay within
            // what the kernel says it has written, and the payload is read only if it is long enough.
            unsafe {
                let mut message: libc::msghdr = mem::zeroed();
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = CONTROL_BYTES as _;
                let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
                if libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) < 0 {
                    return Err(io::Error::last_os_error());
                }
                let mut header = libc::CMSG_FIRSTHDR(&raw const message);
                while !header.is_null() {
                    let kind = ((*header).cmsg_level, (*header).cmsg_type);
                    let needed = libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as u32);
                    if matches!(
                        kind,
                        (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
                    ) && (*header).cmsg_len as usize >= needed as usize
                    {
                        let event = libc::CMSG_DATA(header)
                            .cast::<libc::sock_extended_err>()
                            .read_unaligned();
                        let is_ack = event.ee_origin == libc::SO_EE_ORIGIN_TIMESTAMPING
                            && event.ee_info == SCM_TSTAMP_ACK;
                        // The offset is that of the last byte.
                        return Ok(is_ack.then(|| event.ee_data.wrapping_add(1)));
                    }
                    header = libc::CMSG_NXTHDR(&raw const message, header);
                }
                Ok(None)
            }
        })
    }

    /// From `linux/errqueue.h`; libc does not have it.
    const SCM_TSTAMP_ACK: u32 = 2;

    /// How many of the bytes written are not acknowledged by the peer. Also right after the
    /// connection has failed.
    pub(in crate::device) fn unacknowledged(stream: &TcpStream) -> io::Result<u64> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int, to a place that outlives the call.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u64::try_from(bytes).unwrap_or_default())
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;

    use tokio::net::TcpStream;

    fn unsupported() -> io::Error {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "only Linux can say what a peer has acknowledged",
        )
    }

    pub(super) fn enable<T>(_: &T) -> io::Result<()> {
        Err(unsupported())
    }

    pub(in crate::device) fn prepare(_: &TcpStream) -> io::Result<()> {
        Err(unsupported())
    }

    pub(in crate::device) fn send_marked(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        stream.try_write(bytes)
    }

    pub(in crate::device) fn take_event(_: &TcpStream) -> io::Result<Option<u32>> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    pub(in crate::device) fn unacknowledged(_: &TcpStream) -> io::Result<u64> {
        Err(unsupported())
    }
}

/// The stream offset whose low 32 bits are `low` and that is nearest below or at `written`.
pub(super) fn widen(low: u32, written: u64) -> u64 {
    let behind = (written as u32).wrapping_sub(low);
    written.saturating_sub(u64::from(behind))
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn an_offset_is_found_again_after_the_32_bits_have_wrapped() {
        assert_eq!(widen(7, 10), 7);
        assert_eq!(widen(u32::MAX - 1, (1 << 32) + 5), (1 << 32) - 2);
        assert_eq!(widen(5, (1 << 32) + 5), (1 << 32) + 5);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_peers_kernel_acknowledges_by_offset_also_when_its_program_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        let _peer = TcpStream::connect(address).await.expect("a connection");
        let (stream, _) = listener.accept().await.expect("a connection");
        prepare(&stream).expect("Linux has it");
        supported().expect("Linux has it");
        stream.writable().await.expect("writable");
        let mut written = 0;
        for line in ["SET OUT1 ON\r\n", "X\r\n"] {
            written += send_marked(&stream, line.as_bytes()).expect("sent") as u64;
            let mut acknowledged = 0;
            while acknowledged < written {
                stream.ready(tokio::io::Interest::ERROR).await.expect("an event");
                match take_event(&stream) {
                    Ok(low) => acknowledged = widen(low.expect("an acknowledgement"), written),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_eq!((acknowledged, unacknowledged(&stream).expect("outq")), (written, 0));
        }
    }
}
