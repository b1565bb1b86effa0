//! RDMA verbs.
