package txlog

// Tests may import what they need.
import _ "txmesh/policies"
