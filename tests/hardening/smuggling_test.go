package hardening

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// attack is a request that some reader could take for two, with the second one at its end.
type attack struct {
	name string
	raw  string // %s is the path of the first request
	code string // of the refusal; "": it passes, and is one request
	half bool   // the refusal comes with the body: the backend may have seen the head
}

// hidden is what an attacker wants some reader to see.
const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"

// lines makes a head of a POST of the fields given.
func post(fields, body string) string {
	return "POST %s HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n" + body
}

func sized(fields string) string {
	return post(fields+"Content-Length: "+strconv.Itoa(len(hidden))+"\r\n", hidden)
}

func chunked(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }

func framingAttacks() []attack {
	both := "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
	all := []attack{
		{"CL.TE", post(both, "0\r\n\r\n"+hidden), "TXM0201", false},
		{"TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5c\r\n"+hidden+"\r\n0\r\n\r\n"), "TXM0201", false},
		{"CL.TE in other case", post("content-length: 4\r\ntransfer-ENCODING: chunked\r\n", "0\r\n\r\n"+hidden), "TXM0201", false},
		{"TE.TE, two lines", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n", "0\r\n\r\n"+hidden), "TXM0205", false},
		{"TE.TE, the same twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden), "TXM0205", false},
		{"CL of a GET", "GET %s HTTP/1.1\r\nHost: x\r\nContent-Length: " + strconv.Itoa(len(hidden)) + "\r\n\r\n" + hidden, "", false},
		{"chunks of a GET", "GET %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", false},
		{"TE in HTTP/1.0", "POST %s HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "TXM0201", false},
		{"TE and keep-alive in HTTP/1.0", "POST %s HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "TXM0201", false},
		{"TE behind a blank", post("Content-Length: 4\r\nTransfer-Encoding : chunked\r\n", "0\r\n\r\n"+hidden), "TXM0200", false},
		{"TE behind a tab", post("Content-Length: 4\r\nTransfer-Encoding\t: chunked\r\n", "0\r\n\r\n"+hidden), "TXM0200", false},
		{"TE on a folded line", post("Content-Length: 4\r\nX: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden), "TXM0200", false},
		{"TE with a folded value", post("Content-Length: 4\r\nTransfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"+hidden), "TXM0200", false},
		{"TE behind a bare LF", post("Content-Length: 4\r\nX: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden), "TXM0200", false},
		{"TE behind a bare CR", post("Content-Length: 4\r\nX: y\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+hidden), "TXM0200", false},
		{"CL behind a bare CR in its name", post("X\rContent-Length: 4\r\n", hidden), "TXM0200", false},
		{"TE with an underscore", sized("Transfer_Encoding: chunked\r\n"), "", false},
		{"TE with a NUL in its name", post("Content-Length: 4\r\nTransfer-\x00Encoding: chunked\r\n", hidden), "TXM0200", false},
		{"TE with a letter above ASCII", post("Content-Length: 4\r\nTr\xe4nsfer-Encoding: chunked\r\n", hidden), "TXM0200", false},
		{"CL named by Connection", sized("Connection: close, Content-Length\r\n"), "", false},
		{"TE named by Connection", post("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), "", false},
		{"upgrade to h2c", sized("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"), "", false},
	}
	for _, v := range []string{"xchunked", "chunkedx", "identity", "chunked, identity", "identity, chunked", "gzip, chunked", "chunked, chunked",
		"\"chunked\"", "chunked;q=1", "", ",", "chunked,", "ch\xc3\xbcnked", "chunked\xa0"} {
		all = append(all, attack{"TE is " + strconv.QuoteToASCII(v), post("Transfer-Encoding: "+v+"\r\n", "0\r\n\r\n"+hidden), "TXM0205", false})
	}
	for _, v := range []string{"\x0bchunked", "\x0cchunked", "chunked\x00", "chunked\x7f"} {
		all = append(all, attack{"TE is " + strconv.Quote(v), post("Transfer-Encoding: "+v+"\r\n", "0\r\n\r\n"+hidden), "TXM0200", false})
	}
	for _, v := range []string{"CHUNKED", "Chunked", "  chunked", "\tchunked", "chunked \t"} {
		all = append(all, attack{"TE is " + strconv.Quote(v), post("Transfer-Encoding:"+v+"\r\n", "3\r\nabc\r\n0\r\n\r\n"), "", false})
	}
	return all
}

func lengthAttacks() []attack {
	n := strconv.Itoa(len(hidden))
	all := []attack{
		{"two lengths", post("Content-Length: 0\r\nContent-Length: "+n+"\r\n", hidden), "TXM0201", false},
		{"the same length twice", post("Content-Length: "+n+"\r\nContent-Length: "+n+"\r\n", hidden), "TXM0201", false},
		{"two lengths in other case", post("content-length: "+n+"\r\nCONTENT-LENGTH: 0\r\n", hidden), "TXM0201", false},
		{"a length behind a blank", post("Content-Length : "+n+"\r\n", hidden), "TXM0200", false},
		{"a folded length", post("Content-Length:\r\n "+n+"\r\n", hidden), "TXM0200", false},
		{"zeros before a length", post("Content-Length: 000"+n+"\r\n", hidden), "", false},
		{"blanks around a length", post("Content-Length:  \t "+n+" \t\r\n", hidden), "", false},
	}
	for _, v := range []string{"+" + n, "-" + n, "0x3a", n + "," + n, n + ", " + n, n + ";", n + ".0", "1e2", "", "1 2", "1_0", "\xef\xbc\x91", "9223372036854775808",
		"18446744073709551617", "99999999999999999999999999", "NaN", "\"" + n + "\""} {
		all = append(all, attack{"a length of " + strconv.QuoteToASCII(v), post("Content-Length: "+v+"\r\n", hidden), "TXM0201", false})
	}
	for _, v := range []string{n + "\x00", "\x0b" + n, n + "\x0c", n + "\r0"} {
		all = append(all, attack{"a length of " + strconv.Quote(v), post("Content-Length: "+v+"\r\n", hidden), "TXM0200", false})
	}
	return all
}

func chunkAttacks() []attack {
	all := []attack{
		{"the hidden one in a chunk", chunked(fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(hidden), hidden)), "", false},
		{"zeros before a size", chunked("00003\r\nabc\r\n000\r\n\r\n"), "", false},
		{"an extension", chunked("3;a=b;c=\"d\"\r\nabc\r\n0;e\r\n\r\n"), "", false},
		{"an extension with a quote that stays open", chunked("3;a=\"\r\nabc\r\n0\r\n\r\n"), "", false},
		{"an extension with a bare LF", chunked("3;a\nabc\r\n0\r\n\r\n" + hidden), "TXM0208", true},
		{"an extension with a bare CR", chunked("3;a\rb\r\nabc\r\n0\r\n\r\n" + hidden), "TXM0208", true},
		{"an extension with a bare CR before LF CR", chunked("0;\n\r\n\r\n" + hidden), "TXM0208", true},
		{"an extension with a NUL", chunked("3;\x00\r\nabc\r\n0\r\n\r\n" + hidden), "TXM0208", true},
		{"a long extension", chunked("3;" + strings.Repeat("a", 2000) + "\r\nabc\r\n0\r\n\r\n" + hidden), "TXM0208", true},
		{"a chunk longer than its size", chunked("3\r\nabcd\r\n0\r\n\r\n" + hidden), "TXM0208", true},
		{"a chunk without CRLF", chunked("3\r\nabc0\r\n\r\n" + hidden), "TXM0208", true},
		{"a chunk that ends in LF", chunked("3\r\nabc\n0\r\n\r\n" + hidden), "TXM0208", true},
		{"a size line that ends in LF", chunked("3\nabc\r\n0\r\n\r\n" + hidden), "TXM0208", true},
		{"the last size line ends in LF", chunked("0\n\r\n" + hidden), "TXM0208", true},
		{"no empty line at the end", chunked("0\r\n" + hidden), "TXM0208", true},
		{"an empty line with a blank", chunked("0\r\n \r\n" + hidden), "TXM0208", true},
		{"a trailer", chunked("0\r\nX-Sum: 1\r\n\r\n"), "", false},
		{"a trailer Content-Length", chunked("0\r\nContent-Length: 99\r\n\r\n" + hidden), "TXM0208", true},
		{"a trailer Transfer-Encoding", chunked("0\r\ntransfer-encoding: chunked\r\n\r\n" + hidden), "TXM0208", true},
		{"a trailer Host", chunked("0\r\nX: y\r\nHOST: other\r\n\r\n" + hidden), "TXM0208", true},
		{"a folded trailer", chunked("0\r\nX: y\r\n Content-Length: 99\r\n\r\n" + hidden), "TXM0208", true},
		{"a trailer behind a bare LF", chunked("0\r\nX: y\nContent-Length: 99\r\n\r\n" + hidden), "TXM0208", true},
		{"large trailers", chunked("0\r\nX: " + strings.Repeat("a", 9000) + "\r\n\r\n" + hidden), "TXM0208", true},
	}
	for _, v := range []string{"", "x", "0x3", "+3", "-3", " 3", "3 ", "3\t", "3\x00", "0_3", "FFFFFFFFFFFFFFFF", "FFFFFFFFFFFFFFFFF", "10000000000000003", "00000000000000003", "3g", "\"3\""} {
		all = append(all, attack{"a chunk size of " + strconv.Quote(v), chunked(v + "\r\nabc\r\n0\r\n\r\n" + hidden), "TXM0208", true})
	}
	return all
}

func headAttacks() []attack {
	one := func(line, fields string) string { return line + "\r\n" + fields + "\r\n" }
	return []attack{
		{"HTTP/0.9", "GET %s\r\n\r\n" + hidden, "TXM0200", false},
		{"version 0.9", one("GET %s HTTP/0.9", "Host: x\r\n"), "TXM0204", false},
		{"version 1.2", one("GET %s HTTP/1.2", "Host: x\r\n"), "TXM0204", false},
		{"version 1.10", one("GET %s HTTP/1.10", "Host: x\r\n"), "TXM0204", false},
		{"version in small letters", one("GET %s http/1.1", "Host: x\r\n"), "TXM0200", false},
		{"two blanks in the request line", one("GET  %s HTTP/1.1", "Host: x\r\n"), "TXM0200", false},
		{"tabs in the request line", one("GET\t%s\tHTTP/1.1", "Host: x\r\n"), "TXM0200", false},
		{"a blank at the end of the request line", one("GET %s HTTP/1.1 ", "Host: x\r\n"), "TXM0200", false},
		{"a request line in the target", one("GET %s HTTP/1.1 /hidden HTTP/1.1", "Host: x\r\n"), "TXM0200", false},
		{"a bare CR in the request line", one("GET %s\rX HTTP/1.1", "Host: x\r\n"), "TXM0200", false},
		{"a request line that ends in LF", "GET %s HTTP/1.1\nHost: x\r\n\r\n" + hidden, "TXM0200", false},
		{"fields that end in LF", "GET %s HTTP/1.1\r\nHost: x\n\n" + hidden, "TXM0200", false},
		{"a NUL in the target", one("GET %s\x00 HTTP/1.1", "Host: x\r\n"), "TXM0200", false},
		{"a method that is no token", one("GE(T %s HTTP/1.1", "Host: x\r\n"), "TXM0200", false},
		{"a NUL in a value", one("GET %s HTTP/1.1", "Host: x\r\nX: a\x00b\r\n"), "TXM0200", false},
		{"a field without a colon", one("GET %s HTTP/1.1", "Host: x\r\nContent-Length\r\n"), "TXM0200", false},
		{"a field without a name", one("GET %s HTTP/1.1", "Host: x\r\n: y\r\n"), "TXM0200", false},
		{"a blank before the first field", one("GET %s HTTP/1.1", " Host: x\r\n"), "TXM0200", false},
		{"a value above ASCII", one("GET %s HTTP/1.1", "Host: x\r\nX: \xe4\xf6\r\n"), "", false},
		{"no host", one("GET %s HTTP/1.1", "X: y\r\n"), "TXM0206", false},
		{"two hosts", one("GET %s HTTP/1.1", "Host: x\r\nHost: y\r\n"), "TXM0206", false},
		{"the same host twice", one("GET %s HTTP/1.1", "Host: x\r\nhost: x\r\n"), "TXM0206", false},
		{"a list of hosts", one("GET %s HTTP/1.1", "Host: x, y\r\n"), "TXM0206", false},
		{"a host with a blank", one("GET %s HTTP/1.1", "Host: x y\r\n"), "TXM0206", false},
		{"a host with a path", one("GET %s HTTP/1.1", "Host: x/hidden\r\n"), "TXM0206", false},
		{"a host with a user", one("GET %s HTTP/1.1", "Host: a@x\r\n"), "TXM0206", false},
		{"a target with another host", one("GET http://other%s HTTP/1.1", "Host: x\r\n"), "", false},
		{"empty lines before a request", "\r\n\r\n" + one("GET %s HTTP/1.1", "Host: x\r\n"), "", false},
		{"CONNECT", one("CONNECT x:80 HTTP/1.1", "Host: x:80\r\nConnection: close\r\n"), "TXM0213", false},
		{"too many fields", one("GET %s HTTP/1.1", "Host: x\r\n"+strings.Repeat("A: b\r\n", 256)), "TXM0203", false},
		{"too large a head", one("GET %s HTTP/1.1", "Host: x\r\nA: "+strings.Repeat("b", 32<<10)+"\r\n"), "TXM0202", false},
	}
}

// TestNothingIsSmuggled sends each attack through the sidecar to servers that read differently. Refused, or one request
// at each of them: there is no third way.
func TestNothingIsSmuggled(t *testing.T) {
	all := slices.Concat(framingAttacks(), lengthAttacks(), chunkAttacks(), headAttacks())
	t.Logf("%d attacks", len(all))
	for _, b := range backends(t) {
		t.Run(b.name, func(t *testing.T) {
			m := start(t, b.address)
			want := map[string]int{}
			for i, a := range all {
				path := fmt.Sprintf("/first%d", i)
				got, after := m.send(t, strings.Replace(a.raw, "%s", path, 1), a.code == "")
				seen := slices.DeleteFunc(b.saw(), func(p string) bool { return p == "/canary" })
				early := a.half && strings.HasSuffix(got, path) // answered before the body was over; it goes no further
				switch before := seen[len(seen)-count(seen, path):]; {
				case slices.Contains(seen, "/hidden"):
					t.Fatalf("%s: smuggled; the client got %q", a.name, got)
				case early:
				case a.code != "" && got != a.code:
					t.Errorf("%s: got %q, want %s", a.name, got, a.code)
				case a.code != "" && !a.half && len(before) > 0:
					t.Errorf("%s: was refused and sent", a.name)
				case a.code == "" && len(before) == 1 && strings.HasPrefix(got, "its own "): // the backend is stricter yet
				case a.code == "" && (len(before) != 1 || !strings.HasSuffix(got, path) || after != "/canary"):
					t.Errorf("%s: the backend saw it %d times; the answers were for %q and %q", a.name, len(before), got, after)
				}
				if !early {
					want[a.code]++
				}
				if a.half {
					b.alive(t, m) // the connection that was left half way serves nobody
				}
			}
			delete(want, "")
			for code, n := range want {
				m.awaits(t, code, n)
			}
		})
	}
}

// count says how often the path was seen, in whatever form.
func count(seen []string, path string) (n int) {
	for _, p := range seen {
		if strings.HasSuffix(p, path) {
			n++
		}
	}
	return n
}

// send sends raw bytes and returns the code of the refusal, or the paths that the answers to it and to a request behind
// it are for.
func (m *mesh) send(t *testing.T, raw string, passes bool) (first, second string) {
	t.Helper()
	c := dial(t, m.Inbound)
	defer c.Close()
	if passes && !strings.Contains(raw, "Connection: close") {
		raw += "GET /canary HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	} else {
		second = "/canary"
	}
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	first = answer(t, r)
	if second == "" {
		second = answer(t, r)
	}
	if rest, err := io.ReadAll(r); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%.80q: an answer that nobody asked for, or no end: %q, %v", raw, rest, err)
	}
	return first, second
}

func answer(t *testing.T, r *bufio.Reader) string {
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	if code := res.Header.Get("tx-error"); code != "" {
		return code
	}
	if res.StatusCode != 200 {
		return "its own " + res.Status
	}
	return string(body)
}

// alive sends an honest request through the sidecar.
func (b backend) alive(t *testing.T, m *mesh) {
	t.Helper()
	if first, _ := m.send(t, "GET /canary HTTP/1.1\r\nHost: x\r\n\r\n", true); first != "/canary" {
		t.Fatalf("an honest request got %q", first)
	}
}
