//! One file per verb, each as thin as its manual.
