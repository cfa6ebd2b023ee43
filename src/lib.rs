//! rabbitline
