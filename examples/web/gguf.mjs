// Writes a LoRA adapter as a GGUF file: a header, named values, the list of tensors, and their numbers.

const names = ['attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_down', 'ffn_up'];
const alignment = 32, F32 = 0, typeF32 = 6, typeText = 8;

class Writer {
    constructor() { this.parts = []; this.size = 0; }
    bytes(b) { this.parts.push(b); this.size += b.length; }
    number(bytes, set) {
        const view = new DataView(new ArrayBuffer(bytes));
        set(view);
        this.bytes(new Uint8Array(view.buffer));
    }
    u32(x) { this.number(4, v => v.setUint32(0, x, true)); }
    u64(x) { this.number(8, v => v.setBigUint64(0, BigInt(x), true)); }
    f32(x) { this.number(4, v => v.setFloat32(0, x, true)); }
    text(s) {
        const b = new TextEncoder().encode(s);
        this.u64(b.length);
        this.bytes(b);
    }
    pad() { this.bytes(new Uint8Array((alignment - this.size % alignment) % alignment)); }
    join() {
        const all = new Uint8Array(this.size);
        let at = 0;
        for (const b of this.parts) { all.set(b, at); at += b.length; }
        return all;
    }
}

/** The name of pair `index`: layer by layer, the seven matrices that an adapter may change. */
const nameOf = index => `blk.${Math.floor(index / names.length)}.${names[index % names.length]}.weight`;

/** tensors: [{ index, isB, rows, cols, data: Float32Array }], where index numbers the pairs. */
export function adapterFile(alpha, tensors) {
    const out = new Writer();
    const keys = { 'general.architecture': 'llama', 'general.type': 'adapter', 'general.name': 'minillama', 'adapter.type': 'lora' };
    out.bytes(new TextEncoder().encode('GGUF'));
    out.u32(3); // the version of the format
    out.u64(tensors.length);
    out.u64(Object.keys(keys).length + 1);
    for (const [key, value] of Object.entries(keys)) { out.text(key); out.u32(typeText); out.text(value); }
    out.text('adapter.lora.alpha'); out.u32(typeF32); out.f32(alpha);
    let offset = 0;
    for (const t of tensors) {
        out.text(`${nameOf(t.index)}.lora_${t.isB ? 'b' : 'a'}`);
        out.u32(2);
        out.u64(t.cols); // GGUF lists the innermost dimension first
        out.u64(t.rows);
        out.u32(F32);
        out.u64(offset);
        offset += Math.ceil(t.data.byteLength / alignment) * alignment;
    }
    for (const t of tensors) {
        out.pad();
        out.bytes(new Uint8Array(t.data.buffer, t.data.byteOffset, t.data.byteLength));
    }
    out.pad();
    return out.join();
}
