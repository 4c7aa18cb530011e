package proxy

// cleanRequest removes what was meant for the proxy alone (RFC 9110, 7.6.1). Two things stay: a whole Upgrade
// request, because the tunnel behind it is passed on, and `TE: trailers`, because trailers are.
func (h *head) cleanRequest() {
	if !h.hop {
		return
	}
	if h.upgrading && (h.find("upgrade", 0) < 0 || hasToken(h.get("upgrade"), "h2c") || h.minor == 0) {
		h.upgrading = false // h2c would carry requests past the Gate
	}
	h.cleanConnection(h.upgrading)
	for i := range h.fields {
		f := &h.fields[i]
		switch f.name {
		case teName:
			f.gone = f.gone || !equalFold(h.valueOf(f), "trailers")
		case upgradeName:
			f.gone = !h.upgrading
		case keepAliveName, proxyName:
			f.gone = true
		default: // goes on, or was cleaned with Connection
		}
		h.dirty = h.dirty || f.gone
	}
}

// cleanResponse does the same on the way back. 101 and 426 keep their Upgrade.
func (h *head) cleanResponse() {
	if !h.hop || h.status == 101 {
		return
	}
	upgrade := h.status == 426 && h.upgrading
	h.cleanConnection(upgrade)
	for i := range h.fields {
		f := &h.fields[i]
		switch f.name {
		case upgradeName:
			f.gone = !upgrade
		case keepAliveName, proxyName:
			f.gone = true
		default: // goes on, or was cleaned with Connection
		}
		h.dirty = h.dirty || f.gone
	}
}

// cleanConnection removes the fields that Connection names, and Connection itself unless it asks for an upgrade.
// Names that frame or route the message are not taken at its word.
func (h *head) cleanConnection(upgrade bool) {
	plain := true // nothing but upgrade, keep-alive and close
	for i := h.find("connection", 0); i >= 0; i = h.find("connection", i+1) {
		f := h.fields[i]
		eachToken(h.valueOf(&f), func(token []byte) {
			switch {
			case equalFold(token, "upgrade"), equalFold(token, "keep-alive"), equalFold(token, "close"):
				return
			}
			plain = false
			switch nameOf(token) {
			case otherName:
				h.drop(string(token), 0)
			case connectionName, contentLengthName, expectName, hostName, keepAliveName, proxyName, teName,
				transferEncodingName, upgradeName: // has a rule of its own
			}
		})
	}
	switch {
	case !upgrade:
		h.dropAll(connectionName)
	case !plain || h.close:
		h.set("Connection", "Upgrade")
	}
}
