//! How a connection begins: who we are, what is agreed on, and its one channel.

use std::time::Duration;

use amq_protocol::auth::{Credentials, SASLMechanism};
use amq_protocol::frame::{AMQPFrame, ProtocolVersion};
use amq_protocol::protocol::connection::AMQPMethod as OfConnection;
use amq_protocol::protocol::{AMQPClass, channel, connection};
use amq_protocol::types::{AMQPValue, FieldTable};

use super::{CHANNEL, CONNECTION, Stream};
use crate::settings::Broker;

/// The longest frame we offer to take; RabbitMQ proposes as much.
const FRAME_MAX: u32 = 128 * 1024;
/// What RabbitMQ is to do that older clients would not expect: say why a login is refused, and tell when
/// it ends a consumer.
const CAPABILITIES: [&str; 2] = ["authentication_failure_close", "consumer_cancel_notify"];

impl Stream {
    /// Logs in, opens the channel, and sets how much may be in hand on it.
    pub(super) async fn agree(&mut self, mq: &Broker, name: &str) -> lapin::Result<()> {
        self.wire.put(&AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1()))?;
        self.expect("connection.start", |reply| {
            matches!(reply, AMQPClass::Connection(OfConnection::Start(_))).then_some(())
        })
        .await?;
        self.put(CONNECTION, AMQPClass::Connection(OfConnection::StartOk(start_ok(mq, name))))?;
        let tune = self.expect("connection.tune", |reply| {
            let AMQPClass::Connection(OfConnection::Tune(tune)) = reply else { return None };
            Some(tune)
        });
        let tune = tune.await?;
        let tune_ok = tuned(&tune, mq.heartbeat);
        let heartbeat = Duration::from_secs(u64::from(tune_ok.heartbeat));
        self.wire.agree(tune_ok.frame_max as usize, heartbeat);
        self.put(CONNECTION, AMQPClass::Connection(OfConnection::TuneOk(tune_ok)))?;
        let open = connection::Open { virtual_host: mq.vhost.as_str().into() };
        self.put(CONNECTION, AMQPClass::Connection(OfConnection::Open(open)))?;
        self.expect("connection.open-ok", |reply| {
            matches!(reply, AMQPClass::Connection(OfConnection::OpenOk(_))).then_some(())
        })
        .await?;
        self.put(CHANNEL, AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})))?;
        self.expect("channel.open-ok", |reply| {
            matches!(reply, AMQPClass::Channel(channel::AMQPMethod::OpenOk(_))).then_some(())
        })
        .await?;
        self.set_prefetch(mq.prefetch.get()).await
    }
}

fn start_ok(mq: &Broker, name: &str) -> connection::StartOk {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut capabilities = FieldTable::default();
    for capability in CAPABILITIES {
        capabilities.insert(capability.into(), true.into());
    }
    let mut client_properties = FieldTable::default();
    client_properties.insert("product".into(), text(env!("CARGO_PKG_NAME")));
    client_properties.insert("version".into(), text(env!("CARGO_PKG_VERSION")));
    client_properties.insert("connection_name".into(), text(name));
    client_properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    let credentials = Credentials::new(mq.username.as_str().into(), mq.password.expose().into());
    let mechanism = SASLMechanism::Plain;
    connection::StartOk {
        client_properties,
        mechanism: mechanism.name().into(),
        response: credentials.sasl_auth_string(mechanism),
        locale: "en_US".into(),
    }
}

/// What we agree to of what the broker proposes, in which zero is no limit.
fn tuned(tune: &connection::Tune, heartbeat: Duration) -> connection::TuneOk {
    let ours = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX);
    let both = [tune.heartbeat, ours];
    connection::TuneOk {
        channel_max: tune.channel_max,
        frame_max: if tune.frame_max == 0 { FRAME_MAX } else { tune.frame_max.min(FRAME_MAX) },
        heartbeat: both.into_iter().filter(|seconds| *seconds > 0).min().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_of_two_limits_holds_and_zero_is_none() {
        let tuned = |frame_max, heartbeat, ours| {
            let tune = connection::Tune { channel_max: 2047, frame_max, heartbeat };
            let agreed = tuned(&tune, Duration::from_secs(ours));
            (agreed.frame_max, agreed.heartbeat)
        };
        assert_eq!(tuned(0, 60, 10), (FRAME_MAX, 10));
        assert_eq!(tuned(4096, 5, 10), (4096, 5));
        assert_eq!(tuned(u32::MAX, 0, 10), (FRAME_MAX, 10));
        assert_eq!(tuned(FRAME_MAX, 0, 0), (FRAME_MAX, 0));
    }
}
