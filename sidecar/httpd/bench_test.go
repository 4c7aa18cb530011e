package httpd

import (
	"bytes"
	"net/http"
	"testing"
)

// BenchmarkServer tells what one small call of the API costs beside its handler, here and in net/http. The client
// allocates nothing.
func BenchmarkServer(b *testing.B) {
	h := http.NewServeMux()
	h.HandleFunc("POST /v1/transactions/{id}/commit", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			b.Error("no token")
		}
		w.Header().Set("Tx-Id", r.PathValue("id"))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write([]byte(`{"id":"01J0000000000000000000000","status":"committed"}` + "\n"))
	})
	for name, address := range map[string]func(*testing.B) string{
		"httpd": func(b *testing.B) string {
			return serve(b, Options{Handler: h, HeaderTime: patience, BodyTime: patience, Idle: patience})
		},
		"net-http": func(b *testing.B) string { return serveReference(b, h) },
	} {
		b.Run(name, func(b *testing.B) {
			c := dial(b, address(b))
			request := []byte("POST /v1/transactions/01J0000000000000000000000/commit HTTP/1.1\r\nHost: 127.0.0.1:15820\r\nUser-Agent: Go-http-client/1.1\r\n" +
				"Authorization: Bearer 0123456789abcdef0123456789abcdef\r\nContent-Type: application/json\r\nContent-Length: 2\r\nAccept-Encoding: gzip\r\n\r\n{}")
			answer, got := make([]byte, 4096), 0
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				for got = 0; !bytes.HasSuffix(answer[:got], []byte("}\n")); {
					n, err := c.Read(answer[got:])
					if err != nil {
						b.Fatal(err)
					}
					got += n
				}
			}
			if !bytes.HasPrefix(answer[:got], []byte("HTTP/1.1 200 OK\r\n")) {
				b.Errorf("answer = %s", answer[:got])
			}
		})
	}
}
