package silent

// A comment on something else does not count.
const b = 1
