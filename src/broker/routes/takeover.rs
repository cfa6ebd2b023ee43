//! What becomes of a bridge that has died: its bindings are deleted, and what is in its inbox is taken on.
//!
//! Whoever has the queue that says that a bridge is there acts for it: the bridge itself, or one that takes over.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::super::connection::{self as link, Link};
use super::super::hand::Hand;
use super::super::intake::Intake;
use super::super::stream::{Source, Stream};
use super::super::{BrokerError, topology};
use super::Routes;
use crate::cluster::Cluster;

/// Devices that have connected to other bridges meanwhile were claimed in vain, from the one that is dead. They are
/// claimed anew as soon as its bindings are gone, which takes some milliseconds, and 20,000 of them some
/// seconds; what is in the inbox would be taken for offline before.
const CLAIMS_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether the inbox is empty.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Takes over from a bridge that is gone, unless another does or it has come back.
pub(super) async fn take_over(routes: &Routes, gone: Arc<str>) {
    match attempt(routes, &gone).await {
        Ok(()) => {}
        // If it is still so, it is tried again.
        Err(error) => {
            warn!(bridge = %gone, "cannot take over from a bridge that is gone: {error}");
            routes.cluster.is_there(&gone);
        }
    }
}

async fn attempt(routes: &Routes, gone: &Arc<str>) -> Result<(), BrokerError> {
    let link = routes.nodes.open(&routes.cluster.bridge, "takeover").await?;
    let result = tokio::select! {
        result = empty(&link, &routes.intake, &routes.cluster, gone) => result,
        error = link.lost() => Err(error),
    };
    link.end(result).await
}

async fn empty(
    link: &Link,
    intake: &Intake,
    cluster: &Cluster,
    gone: &Arc<str>,
) -> Result<(), BrokerError> {
    let settings = &intake.settings;
    if !topology::act_for(link, settings, gone).await? {
        cluster.is_there(gone);
        return Ok(());
    }
    topology::close_inbox(link, settings, gone).await?;
    let Some(waiting) = topology::inbox_depth(link, settings, gone).await? else {
        cluster.forget_bridge(gone);
        return Ok(());
    };
    intake.devices().metrics.taken_over();
    info!(bridge = %gone, waiting, "taking over from a bridge that is gone");
    cluster.left(gone);
    tokio::time::sleep(CLAIMS_WITHIN).await;
    let source = Source { queue: settings.mq.inbox(gone), exclusive: true };
    let name = link::name(&cluster.bridge, "takeover inbox");
    let stream = Stream::open(&settings.mq, link.host(), &name, source).await?;
    let done = CancellationToken::new();
    let consuming = async {
        let hand = Hand::new(intake, stream, true).consume(&done).await?;
        hand.finish().await
    };
    let looking = async {
        while topology::inbox_depth(link, settings, gone).await?.is_some_and(|depth| depth > 0) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        done.cancel();
        Ok(())
    };
    tokio::try_join!(consuming, looking)?;
    topology::delete_inbox(link, settings, gone).await?;
    cluster.forget_bridge(gone);
    info!(bridge = %gone, "what came for a bridge that is gone is taken on");
    Ok(())
}
