//! Tests of the judgement; this file holds what they share.
