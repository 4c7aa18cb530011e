package raw

// The codes of what is logged: a connection without a protocol has no answer to put them in.
const (
	CodeUnreachable = "TXM0233"
	CodeFull        = "TXM0234"
)
