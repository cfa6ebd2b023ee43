//! What becomes of a bridge that has died: its gate is shut, what is in its inbox is taken on, and at leisure its
//! bindings are deleted.
//!
//! Whoever has the queue that says that a bridge is there acts for it: the bridge itself, or one that takes over.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::super::connection::{self as link, Link};
use super::super::intake::Queue;
use super::super::{BrokerError, topology};
use super::Routes;
use super::inbox::Inbox;
use crate::settings::Settings;

/// Devices that have connected to other bridges meanwhile were claimed in vain, from the one that is dead. They are
/// claimed anew as soon as its gate is shut, which takes some milliseconds, and 20,000 of them some
/// seconds; what is in the inbox would be taken for offline before.
const CLAIMS_WITHIN: Duration = Duration::from_secs(1);
/// How long after a bridge has died or come back its old bindings begin to be deleted, which slows others that bind:
/// its devices are somewhere else by then.
const CLEAR_AFTER: Duration = Duration::from_secs(10);

/// Takes over from a bridge that is gone, unless another does or it has come back.
pub(super) async fn take_over(routes: &Routes, own: &Link, gone: Arc<str>) {
    match attempt(routes, own, &gone).await {
        Ok(true) => clear_up(own, &routes.intake.settings, &gone).await,
        Ok(false) => {}
        // If it is still so, it is tried again.
        Err(error) => {
            warn!(bridge = %gone, "cannot take over from a bridge that is gone: {error}");
            routes.cluster.is_there(&gone);
        }
    }
}

/// Deletes the bindings that a bridge has left when it died.
pub(super) async fn clear_up(link: &Link, settings: &Settings, bridge: &str) {
    tokio::time::sleep(CLEAR_AFTER).await;
    if let Err(error) = topology::clear_gates(link, settings, bridge).await {
        warn!(bridge, "cannot delete the bindings that a bridge has left: {error}");
    }
}

/// False if somebody else acts for it, or it has come back.
async fn attempt(routes: &Routes, own: &Link, gone: &Arc<str>) -> Result<bool, BrokerError> {
    let (intake, cluster) = (&*routes.intake, &*routes.cluster);
    let settings = &intake.settings;
    let shut = act_for(routes, gone, async |link| topology::shut_gate(link, settings, gone).await);
    let Some(has_died) = shut.await? else {
        cluster.is_there(gone);
        return Ok(false);
    };
    let Some(waiting) = topology::inbox_depth(own, settings, gone).await? else {
        cluster.forget_bridge(gone);
        return Ok(true);
    };
    if has_died {
        intake.devices().metrics.taken_over();
        info!(bridge = %gone, waiting, "taking over from a bridge that is gone");
        cluster.left(gone);
        tokio::time::sleep(CLAIMS_WITHIN).await;
    }
    // What is taken up is settled only when its devices have it, and the bridge may come back before that. Then it
    // reads for itself.
    let reader = link::name(&cluster.bridge, "takeover inbox");
    let inbox =
        Inbox { link: own, intake, of: gone, queue: Queue::InboxOfAnother, reader: &reader };
    inbox.take_while(|| !cluster.is_present(gone)).await?;
    let rest = async |link: &Link| Inbox { link, ..inbox }.take_rest().await;
    if act_for(routes, gone, rest).await?.is_none() {
        cluster.is_there(gone);
        return Ok(true);
    }
    cluster.forget_bridge(gone);
    if has_died {
        info!(bridge = %gone, "what came for a bridge that is gone is taken on");
    }
    Ok(true)
}

/// Does something in the place of a bridge that is gone; None if another bridge acts for it, or it itself.
async fn act_for<T>(
    routes: &Routes,
    gone: &str,
    what: impl AsyncFnOnce(&Link) -> Result<T, BrokerError>,
) -> Result<Option<T>, BrokerError> {
    let link = routes.nodes.open(&routes.cluster.bridge, "takeover").await?;
    let acting = async {
        let may = topology::act_for(&link, &routes.intake.settings, gone).await?;
        if may { what(&link).await.map(Some) } else { Ok(None) }
    };
    let result = tokio::select! {
        result = acting => result,
        error = link.lost() => Err(error),
    };
    link.end(result).await
}
