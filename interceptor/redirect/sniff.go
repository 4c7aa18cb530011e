package redirect

import "bytes"

// Kind is what the first bytes of a client are.
type Kind uint8

// The kinds.
const (
	Unclear Kind = iota // too few bytes
	HTTP                // a request line, or the preface of HTTP/2, which begins like one
	TLS                 // a ClientHello
	Other
)

// methodMax is longer than any method that is in use.
const methodMax = 32

// sniffMax is how many bytes may be needed: empty lines, a method and the begin of a target.
const sniffMax = 2*methodMax + len(" http://")

// Sniff says what a client speaks whose first bytes these are. A request line is a method of letters and '-', a space and
// a target that begins with '/', '*' or http://, so that other protocols of lines (SSH, SMTP, FTP, IRC) are none.
func Sniff(first []byte) Kind {
	if len(first) > 0 && first[0] == 0x16 { // a handshake record
		return TLS
	}
	line := bytes.TrimLeft(first, "\r\n") // old clients send an empty line after a body
	if len(first)-len(line) > methodMax {
		return Other
	}
	method, target, ok := bytes.Cut(line, []byte(" "))
	if len(method) > methodMax || bytes.ContainsFunc(method, func(r rune) bool { return !letter(r) }) || ok && len(method) == 0 {
		return Other
	}
	if !ok {
		return Unclear
	}
	return kindOf(target)
}

func letter(r rune) bool { return 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || r == '-' }

func kindOf(target []byte) Kind {
	const scheme = "http://"
	switch n := min(len(target), len(scheme)); {
	case n == 0:
		return Unclear
	case target[0] == '/' || target[0] == '*':
		return HTTP
	case !bytes.EqualFold(target[:n], []byte(scheme[:n])):
		return Other
	case n < len(scheme):
		return Unclear
	}
	return HTTP
}
